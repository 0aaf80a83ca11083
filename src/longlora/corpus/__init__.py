"""Long texts, and questions about them, to train on."""
