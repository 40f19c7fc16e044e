"""Text read and tokenised on the fly: the same windows in the same order on any number of ranks and workers."""
