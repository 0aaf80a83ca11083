"""Convert PDFs to running text: pdfium's words in reading order, without what is not part of the text.

    words       words as pdfium returns them, with their positions and type
    pdfium      pages of words and drawings, and whether there is text to read
    drawings    figures, and the words that are their labels
    margins     running heads and page numbers
    columns     reading order: pdfium's, or by whitespace where that jumps
    lines       words to lines
    asides      footnotes, captions and the tables next to them
    paragraphs  lines to paragraphs, across columns and pages
    document    all steps, from a file to its text without the list of references

Coordinates are PDF points (1/72 inch); y points downwards from the top of the page.
"""
