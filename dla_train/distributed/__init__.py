"""Many processes as one run: how they start, join, decide together, and share the work."""
