"""The whole job on one small example: `walkthrough.py` does it, `handout.py` writes what it leaves."""
