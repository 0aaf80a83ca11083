"""What the paper's authors published, turned into what longlora and everybody else's programs read.

`released_models.py` lists their models; `published_folder.py` finds out what a folder holds and how far it reads;
`published_weights.py` reads their `.bin` files, `published_adapter.py` makes one adapter of PEFT's out of them;
`importing.py` tells the story and converts whole models.
"""

from longlora.released.importing import ImportReport, import_released
from longlora.released.released_models import RELEASED_MODELS, ReleasedModel

__all__ = ["RELEASED_MODELS", "ImportReport", "ReleasedModel", "import_released"]
