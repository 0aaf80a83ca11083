"""From a shelf of PDFs, e-books and web pages to clean texts, to questions about them, to a file that trains well."""
