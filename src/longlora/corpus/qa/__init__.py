"""Questions and answers about whole documents, written by a language model and checked against the text.

`run.make_questions` tells the story. A document's questions come out of `work`, which asks for replies and does not
know where they come from: a server or a local model, through the journal (`caller`), the journal alone (when the
records are written), or nobody (when the costs are estimated).
"""

from longlora.corpus.qa.models import choose_model
from longlora.corpus.qa.run import Sending, Summary, make_questions
from longlora.corpus.qa.settings import Settings
from longlora.corpus.qa.templates import load_prompts

__all__ = ["Sending", "Settings", "Summary", "choose_model", "load_prompts", "make_questions"]
