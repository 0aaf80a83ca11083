"""From a recipe to an extended model: `run.py` tells the story."""
