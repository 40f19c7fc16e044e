"""The small study: which memory recalls how much, on tasks that a CPU can train. `python -m dla_train.study --help`."""
