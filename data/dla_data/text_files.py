"""Which files of a directory are plain text, whoever reads it."""

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")
