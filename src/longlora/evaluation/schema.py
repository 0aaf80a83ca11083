"""What all result files have in common: fields with names and units, and writing whole or not at all."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from longlora.support.files import write_atomically

# JSON has no NaN and no infinity: both are written as null, which comes back as NaN.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Schema(BaseModel):
    """Values that do not change."""

    model_config = ConfigDict(frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return json.loads(self.model_dump_json())


class Result(Schema):
    """What all result files say."""

    FILE: ClassVar[str]

    model: str
    weights: str | None = None  # digest, as `model_identity` gives it
    context: int | None = None  # tokens that the model says it reads
    settings: dict[str, Any] = Field(default_factory=dict)  # what decides the numbers
    provenance: dict[str, Any] = Field(default_factory=dict)
    path: Path = Field(default=Path(), exclude=True)  # where it was read from

    def write(self, folder: str | Path) -> None:
        """Write the file into a folder, whole or not at all."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(folder) / self.FILE, self.model_dump_json(indent=2) + "\n")
