"""Names, numbers and UUIDs that differ from each other: what needles are made of."""

import uuid
from typing import Literal

import numpy as np

from dla_data.errors import DataError
from dla_data.order import WindowOrder
from dla_data.synthetic.draws import bits, stream_keys

NameKind = Literal["words", "numbers", "uuids"]

_ADJECTIVE_WORDS = """
able aged amber ample bare blue bold brave brief bright brisk broad calm cheap chief civil clean clear close cold cool
crisp cruel damp dark dear deep dense dim dry dull eager early even faint fair fast fierce fine firm flat fond frail
free fresh full gentle glad golden grand grave gray great green harsh heavy high honest hot huge humble icy ideal idle
keen kind large late lean light live lone long loud low loyal lucky mad main mild minor moist narrow neat new noble odd
old open pale plain polite poor prime proud pure quick quiet rare rich
"""
_NOUN_WORDS = """
acorn anchor apple arrow badge barn basket beach bell bench bird boat bone book bottle branch bread bridge brook brush
bucket butter button cabin candle canyon carpet castle cave chain chair cherry circle clock cloud coal coast coin
copper corner cotton cradle crown curtain desert dream drum eagle engine farm feather fence field flame flute forest
fork fountain fox garden gate glass glove grape harbor hammer hill honey horn island jacket jewel kettle key ladder
lake lantern leaf lemon lion marble meadow mirror moon mountain needle oak ocean orchard owl paper pearl pencil pepper
piano pillow planet pond prism quill
"""
_ADJECTIVES, _NOUNS = _ADJECTIVE_WORDS.split(), _NOUN_WORDS.split()

_FIRST_NUMBER, _NUMBERS = 1_000_000, 9_000_000  # seven digits


def how_many(kind: NameKind) -> int | None:
    """How many different names of a kind there are; None if practically unlimited."""
    return {"words": len(_ADJECTIVES) * len(_NOUNS), "numbers": _NUMBERS, "uuids": None}[kind]


def names(kind: NameKind, seed: int, purpose: str, index: int, count: int) -> list[str]:
    """`count` names, no two equal; the first n of them are the same for every `count` >= n.

    `words` are an adjective and a noun ("calm-harbor", 10,000 of them), `numbers` have seven digits, `uuids` are of
    version 4 (equal by chance with a probability below 10^-30).

    Raises:
        DataError: there are not so many, or a seed or index out of range.
    """
    example = np.array([index], dtype=np.int64)
    total = how_many(kind)
    if total is None:
        halves = bits(seed, purpose, example, 2 * count)[0].tolist()
        pairs = zip(halves[0::2], halves[1::2], strict=True)
        return [str(uuid.UUID(int=high << 64 | low, version=4)) for high, low in pairs]
    if count > total:
        raise DataError(f"{count:,} different {kind} asked for: there are {total:,}. Use a shorter text.")
    drawn = WindowOrder(total, int(stream_keys(seed, purpose, example)[0])).windows(0, count).tolist()
    if kind == "words":
        return [f"{_ADJECTIVES[number // len(_NOUNS)]}-{_NOUNS[number % len(_NOUNS)]}" for number in drawn]
    return [str(_FIRST_NUMBER + number) for number in drawn]
