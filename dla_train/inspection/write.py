"""Runs a trained model on a text and writes the page and the pictures."""

from __future__ import annotations

from pathlib import Path

from dla_data.errors import DataError
from dla_data.tokenizer import load_tokenizer
from dla_train import atomic_files
from dla_train.errors import UsageError
from dla_train.evaluation.trained import Trained
from dla_train.inspection.files import LIFE, PAGE, RATES, WEIGHTS
from dla_train.inspection.observe import Layer, observe
from dla_train.inspection.page import page, pieces
from dla_train.inspection.pictures import draw_life, draw_rates, draw_weights
from dla_train.inspection.slot_life import lives_of


def write_inspection(folder: Path, trained: Trained, text: str, layer: int | None, head: int, max_tokens: int) -> Path:
    """Make `index.html` and three PNGs in `folder`, which may exist.

    Args:
        folder: where to write. trained: the model. text: what it reads. layer, head: which are shown first; None
            for the first layer that has slots. max_tokens: how many tokens of the text are read, from its start.
    Returns:
        the page's path.
    Raises:
        UsageError: no tokenizer, too little text, no such layer or head, a model without slots, or a folder that
            cannot be written.
    """
    if trained.tokenizer_path is None:
        raise UsageError(
            f"{trained.folder} has no tokenizer.json: its data is no text, or the file is gone. Give another run."
        )
    try:
        encoding = load_tokenizer(trained.tokenizer_path).encode(text, add_special_tokens=False)  # as in training
    except DataError as error:
        raise UsageError(str(error)) from error
    if len(encoding.ids) < 2:
        raise UsageError("the text has fewer than two tokens; give a longer one.")
    words = pieces(text, encoding)[:max_tokens]
    layers = observe(trained.model, encoding.ids[:max_tokens])
    place = _place(layer, layers)
    heads = layers[place].plan.shift.shape[2]
    if not 0 <= head < heads:
        raise UsageError(f"--head is {head}; it must be from 0 to {heads - 1}.")
    lives = [lives_of(one.plan) for one in layers]
    title = trained.title
    layer = layers[place].index
    content = page(title, words, layers, lives, place, head, _note(layers, len(encoding.ids), max_tokens))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write_text(folder / PAGE, content)
        draw_life(folder / LIFE, lives[place][head], f"slots of layer {layer}, head {head}")
        draw_rates(folder / RATES, layers)
        draw_weights(folder / WEIGHTS, layers[place], f"slot weight by age, layer {layer}")
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}. Make room or permission there, or give --out another folder."
        ) from error
    return folder / PAGE


def _note(layers: list[Layer], tokens: int, max_tokens: int) -> str:
    parts = []
    if tokens > max_tokens:
        parts.append(f"The first {max_tokens:,} of {tokens:,} tokens (--max-tokens).")
    if all(layer.threshold is None for layer in layers):
        parts.append(
            "This memory does not look at the content: slots begin at fixed positions, and there are no scores."
        )
    return " ".join(parts)


def _place(layer: int | None, layers: list[Layer]) -> int:
    """Where in `layers` the layer of this number is."""
    numbers = [one.index for one in layers]
    if layer is None:
        return 0
    if layer not in numbers:
        has_all = numbers == list(range(len(numbers)))
        allowed = f"from 0 to {numbers[-1]}" if has_all else f"one that has slots: {', '.join(map(str, numbers))}"
        raise UsageError(f"--layer is {layer}; it must be {allowed}.")
    return numbers.index(layer)
