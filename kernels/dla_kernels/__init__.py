"""Multi-state linear attention: where segments begin (a plan) and how they are read."""
