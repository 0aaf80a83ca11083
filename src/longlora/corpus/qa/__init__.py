"""Questions and answers about whole documents, written by a language model and checked against the text.

`make.make_questions` tells the story. The questions of one document come out of `document_qa`, which asks for replies
and does not know where they come from: a server or a local model, through the journal (`asking`), the journal alone
(when the records are written), or nobody (when the costs are estimated).
"""

from longlora.corpus.qa.answering_model import choose_model
from longlora.corpus.qa.make import make_questions
from longlora.corpus.qa.prompt_files import load_prompts
from longlora.corpus.qa.qa_settings import Sending, Settings

__all__ = ["Sending", "Settings", "choose_model", "load_prompts", "make_questions"]
