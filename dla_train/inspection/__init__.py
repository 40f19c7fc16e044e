"""What a model's memory did with one text: where slots begin, how they merge, how they are read."""
