"""PDF to running text: pdfium's words and order, and above them what is not part of the text taken out.

    words       words as pdfium tells them, with their places and type
    pdfium      pages of words and drawings, and whether there is a text to read
    drawings    figures, and the words that are their labels
    margins     running heads and page numbers
    columns     reading order: pdfium's, or by whitespace where it jumps
    lines       words to lines
    asides      footnotes, captions and the tables beside them
    paragraphs  lines to paragraphs, over columns and pages
    document    all of it, from a file to its text without the list of references

Coordinates are PDF points (1/72 inch); y counts downwards from the top of the page, as one reads.
"""
