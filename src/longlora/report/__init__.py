"""One page that lays models side by side, made of the files that evaluations and training runs leave behind."""
