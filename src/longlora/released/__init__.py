"""Convert the weights that the paper's authors published to the formats of PEFT and transformers.

`importing.py` has all steps and converts full models; `released_models.py` lists the authors' models;
`published_folder.py` determines what a folder contains and its context; `published_weights.py` reads the `.bin` files,
and combines them into one PEFT adapter.
"""

from longlora.released.importing import ImportReport, import_released
from longlora.released.released_models import RELEASED_MODELS, ReleasedModel

__all__ = ["RELEASED_MODELS", "ImportReport", "ReleasedModel", "import_released"]
