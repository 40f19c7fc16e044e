"""Shows what a model's memory did with a text: where slots begin, how they merge, how they are read."""
