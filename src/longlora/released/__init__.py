"""What the paper's authors published, turned into what longlora and everybody else's programs read.

`table.py` lists their models; `published.py` finds out what a folder holds; `pickles.py` reads their `.bin` files;
`context.py` infers how far a model reads; `adapter.py` and `model.py` convert, and `run.py` tells the story.
"""

from longlora.released.importing import ImportReport, import_released
from longlora.released.table import RELEASED_MODELS, ReleasedModel

__all__ = ["RELEASED_MODELS", "ImportReport", "ReleasedModel", "import_released"]
