"""Made-up tasks that show what a memory holds: every example is a function of (seed, index) alone.

Token tasks are frozen dataclasses with `check(vocab_size, window)`, `examples(vocab_size, window, seed, indices)` and
`answers(window, seed, indices)`: `Mqar`, `ChangePoint`, `Copy`; `dataset.SyntheticExamples` reads them. Importing them
does not import torch, as recipes hold them. `needles` makes prompts in words, for whatever tokenizer.
"""

from dla_data.synthetic.change_point import ChangePoint
from dla_data.synthetic.copying import Copy
from dla_data.synthetic.examples import IGNORED, Examples, TokenTask
from dla_data.synthetic.mqar import Mqar

__all__ = ["IGNORED", "ChangePoint", "Copy", "Examples", "Mqar", "TokenTask"]
