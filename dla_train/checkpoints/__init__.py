"""Checkpoints that are complete or invisible, and the choice of the one to go on from."""
