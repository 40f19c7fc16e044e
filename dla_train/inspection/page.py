"""One self-contained HTML page: its data, style and script are in it."""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

from tokenizers import Encoding

from dla_train.inspection.observe import Layer
from dla_train.inspection.slot_life import Spell


def pieces(text: str, encoding: Encoding) -> list[str]:
    """The part of `text` that each token adds; "" for a token that is only a further part of a character already
    shown."""
    found, shown = [], 0
    for start, end in encoding.offsets:
        found.append(text[max(start, shown) : end])
        shown = max(shown, end)
    return found


def page(
    title: str, words: list[str], layers: list[Layer], lives: list[list[list[Spell]]], layer: int, head: int, note: str
) -> str:
    """The HTML.

    Args:
        title: of the run. words: the text of each token. layers: what they did. lives: of each layer and head.
        layer, head: which are shown first; the layer by its place in `layers`. note: a further remark, or "".
    """
    content = {
        "title": title,
        "note": note,
        "words": words,
        "ends": list(layers[0].ends),
        "layer": layer,
        "head": head,
        "layers": [_layer(one, heads) for one, heads in zip(layers, lives, strict=True)],
    }
    # The text may contain anything, even `</script>`.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = resources.files("dla_train.inspection").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/null", data.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _layer(layer: Layer, heads: list[list[Spell]]) -> dict[str, Any]:
    plan = layer.plan
    return {
        "index": layer.index,
        "capacity": plan.capacity,
        "rates": [round(rate, 4) for rate in layer.rates.tolist()],
        "slots": [round(mean, 2) for mean in layer.slots_in_use.double().mean(0).tolist()],
        "threshold": None if layer.threshold is None else [round(value, 3) for value in layer.threshold.tolist()],
        "weights": [[None if math.isnan(w) else round(w, 4) for w in head] for head in layer.weights.tolist()],
        "score": [[round(score, 3) for score in head] for head in plan.score[0].T.tolist()],
        "opens": [[t for t, opens in enumerate(head) if opens or t == 0] for head in plan.boundary[0].T.tolist()],
        "life": [
            [[s.first, s.end, s.since, s.until, round(s.density, 3), int(s.is_open)] for s in one] for one in heads
        ],
    }
