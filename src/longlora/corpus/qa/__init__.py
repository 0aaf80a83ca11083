"""Generate questions and answers about whole documents with a language model, and check them against the text.

`make.make_questions` has all steps. `document_qa` produces the questions about one document. It requests replies
without knowing their source: a server or a local model, through the journal (`asking`); the journal alone (when writing
the records); or no model at all (when estimating the cost).
"""
