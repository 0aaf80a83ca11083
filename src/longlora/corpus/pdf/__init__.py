"""PDF to running text: pdfium's words and order, and above them what is not part of the text taken out.

    pdfium      words, lines and drawings, as pdfium tells them
    drawings    figures and ruled tables, and the words that belong to them
    margins     running heads and page numbers
    columns     reading order: pdfium's, or by whitespace where it jumps
    lines       words to lines
    asides      footnotes, captions and tables without rulings
    paragraphs  lines to paragraphs, over columns and pages
    document    all of it, from a file to its text without the list of references

Coordinates are PDF points (1/72 inch); y counts downwards from the top of the page, as one reads.
"""
