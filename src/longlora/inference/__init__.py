"""Chat with a model about a document: in the terminal, in a script, on a web page."""
