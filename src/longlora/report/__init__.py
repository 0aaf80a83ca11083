"""A one-page report that compares models, generated from the files of evaluations and training runs."""
