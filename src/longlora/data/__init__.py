"""Turn texts or conversations, wherever they are stored, into rows of one context length."""
