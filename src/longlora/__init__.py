"""Extend a language model's context with LongLoRA (Chen et al., arXiv 2309.12307).

After `import longlora`, `AutoModelForCausalLM.from_pretrained(path, attn_implementation="s2")` returns a model that
trains with shifted sparse attention and evaluates with its ordinary attention. Importing the package loads neither
torch nor transformers: the names below are imported on first use.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "longlora.errors",
    "ConfigError": "longlora.errors",
    "DataError": "longlora.errors",
    "DivergenceError": "longlora.errors",
    "LongLoRAError": "longlora.errors",
    "Recipe": "longlora.config",
    "check_s2_reaches": "longlora.models.probe",
    "extend_positions": "longlora.models.positions",
    "import_released": "longlora.released",
    "load_for_inference": "longlora.models.load",
    "load_recipe": "longlora.config",
    "loss_by_position": "longlora.evaluation.perplexity",
    "merge_adapter": "longlora.merge",
    "needle": "longlora.evaluation.retrieval_tests",
    "original_perplexity": "longlora.evaluation.perplexity",
    "parse_recipe": "longlora.config",
    "passkey": "longlora.evaluation.retrieval_tests",
    "perplexity": "longlora.evaluation.perplexity",
    "perplexity_by_length": "longlora.evaluation.perplexity",
    "recall": "longlora.evaluation.retrieval_tests",
    "run_retrieval": "longlora.evaluation.retrieval",
    "s2_attention": "longlora.attention",
    "s2_attention_reference": "longlora.attention",
    "serve": "longlora.serving",
    "set_group_size": "longlora.models.registration",
    "topics": "longlora.evaluation.retrieval_tests",
    "train": "longlora.training.run",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'longlora' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return [*globals(), *__all__]


class _RegisterWithTransformers(MetaPathFinder):
    """Registers "s2" as soon as transformers has loaded its table of attentions, whoever imports it."""

    table = "transformers.modeling_utils"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Let the ordinary finders load the table, and register "s2" afterwards."""
        if fullname != self.table:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load_table = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load_table(module)
                importlib.import_module("longlora.models.registration")

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if _RegisterWithTransformers.table in sys.modules:
    importlib.import_module("longlora.models.registration")
else:
    sys.meta_path.insert(0, _RegisterWithTransformers())
