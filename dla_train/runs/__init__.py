"""One folder per run: recipe, environment, metrics, checkpoints, logs, and the lock that keeps a second process out."""
