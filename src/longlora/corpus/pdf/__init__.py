"""PDF to running text: what stands on the pages, in which order it is read, and what is not part of the text.

    page        words with their places, rulings and drawings, as pdfium tells them
    drawings    figures and ruled tables, and the words that belong to them
    margins     running heads and page numbers
    columns     reading order, by whitespace
    lines       words to lines
    asides      footnotes, captions and tables without rulings
    paragraphs  lines to paragraphs, over columns and pages
    references  the list of references
    document    all of it, from a file to its text

Coordinates are PDF points (1/72 inch); y counts downwards from the top of the page, as one reads.
"""
