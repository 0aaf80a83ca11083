"""The base class of all result files, with their common fields and atomic writing."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from longlora.support.files import write_atomically

# JSON has no NaN or infinity: both are written as null and read back as NaN.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Schema(BaseModel):
    """An immutable pydantic model."""

    model_config = ConfigDict(frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return json.loads(self.model_dump_json())


class Result(Schema):
    """The fields common to all result files."""

    FILE: ClassVar[str]

    model: str
    weights: str | None = None  # digest (`model_identity`)
    context: int | None = None  # the model's context length in tokens, from its configuration
    settings: dict[str, Any] = Field(default_factory=dict)  # everything that affects the numbers
    provenance: dict[str, Any] = Field(default_factory=dict)
    path: Path = Field(default=Path(), exclude=True)  # where it was read from

    def write(self, folder: str | Path) -> None:
        """Write the file into a folder, atomically."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(folder) / self.FILE, self.model_dump_json(indent=2) + "\n")
