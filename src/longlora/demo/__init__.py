"""An end-to-end demo on a small model: `walkthrough.py` runs it, `handout.py` writes its report."""
