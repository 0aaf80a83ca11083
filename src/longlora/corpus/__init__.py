"""Turn PDFs, e-books and web pages into clean texts, generate questions about them, and check the training file."""
