"""Generate questions and answers about whole documents with a language model, and check them against the text.

`make.make_questions` has all steps. `document_qa` produces the questions about one document. It requests replies
without knowing their source: a server or a local model, through the journal (`asking`); the journal alone (when writing
the records); or no model at all (when estimating the cost).
"""

from longlora.corpus.qa.answering_model import choose_model
from longlora.corpus.qa.make import make_questions
from longlora.corpus.qa.prompt_files import load_prompts
from longlora.corpus.qa.qa_settings import QASettings, Sending

__all__ = ["QASettings", "Sending", "choose_model", "load_prompts", "make_questions"]
