"""Train a recipe into an extended model; start reading at `run.py`."""
