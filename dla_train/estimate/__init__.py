"""Estimates what a recipe costs before it is launched: parameters, FLOPs, bytes and time."""
