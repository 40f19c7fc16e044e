"""The report of a finished run: a table, a picture, a sample."""
