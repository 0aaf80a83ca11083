"""Perplexity by length to compute with: `perplexity.json`, which `longlora report` reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlora.evaluation.perplexity import Perplexity
from longlora.support.files import write_atomically

PERPLEXITY_FILE = "perplexity.json"


@dataclass(frozen=True, kw_only=True)
class PerplexityResult:
    """Perplexity of one model by context length in tokens; `perplexity.json` is this."""

    model: str
    weights: str
    """Digest of the weights, as `model_identity` gives it."""

    context: int
    """Tokens that the model says it reads."""

    protocol: str
    data: str
    """The texts in a few words."""

    perplexity: Mapping[int, Perplexity]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return vars(self) | {"perplexity": {str(length): value.to_dict() for length, value in self.perplexity.items()}}


def write_perplexity(result: PerplexityResult, output: Path) -> None:
    """Write `perplexity.json` into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / PERPLEXITY_FILE, json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n")
