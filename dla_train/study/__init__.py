"""The small study: how much each memory recalls, on tasks that can be trained on a CPU. `python -m dla_train.study
--help`."""
