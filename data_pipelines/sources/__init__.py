"""One reader or builder a file."""
