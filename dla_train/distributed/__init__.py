"""Many processes as one run: how they start, meet, decide together, and share the work."""
