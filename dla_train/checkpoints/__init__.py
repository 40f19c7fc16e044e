"""Checkpoints that are either complete or invisible, and the choice of the one to continue from."""
