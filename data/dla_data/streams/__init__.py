"""Text read and tokenized on the fly: the same windows in the same order on any number of ranks and workers."""
