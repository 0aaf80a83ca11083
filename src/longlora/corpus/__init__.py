"""From a shelf of PDFs, e-books and web pages to clean texts, and from question sets to a file that trains well."""
