"""Needles in a haystack, of RULER's shape (arXiv 2404.06654): facts hidden in a long text, asked for at its end.

A prompt is

    {instruction}
    {haystack with needles "One of the special magic numbers for calm-harbor is: 4811520."}
    {question} {beginning of the answer}

and the answer is right if it contains all the values asked for. The haystack is

* `repeat`: the same five short sentences again and again, one unit to a line, needles on lines of their own;
* `text`: sentences of any text, from its beginning and again from there when it ends, in one paragraph;
* `needles`: needles with other keys and values, one to a line, that nobody asks for.

Needles stand before different units of the haystack, all places equally likely. Keys, values and those of the haystack
are all different.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dla_data.errors import DataError
from dla_data.synthetic.draws import distinct, permutation
from dla_data.synthetic.names import NameKind, how_many, names

_REPEATED = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, kw_only=True)
class NeedleTask:
    """What is hidden where, and how much of it is asked for.

    Attributes:
        haystack: see the module. key_kind, value_kind: what needles are made of.
        keys: how many keys are hidden. values: how many each key has. queries: how many keys are asked for.
    """

    haystack: Literal["repeat", "text", "needles"]
    key_kind: NameKind = "words"
    value_kind: NameKind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    def __post_init__(self) -> None:
        if min(self.keys, self.values, self.queries) < 1:
            raise ValueError(
                f"keys, values and queries are {self.keys}, {self.values}, {self.queries}; at least 1 each"
            )
        if self.queries > self.keys:
            raise ValueError(f"queries is {self.queries}; it must be at most keys, {self.keys}")


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask(haystack="repeat"),
    "niah_single_2": NeedleTask(haystack="text"),
    "niah_single_3": NeedleTask(haystack="text", value_kind="uuids"),
    "niah_multikey_1": NeedleTask(haystack="text", keys=4),
    "niah_multikey_2": NeedleTask(haystack="needles"),
    "niah_multikey_3": NeedleTask(haystack="needles", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": NeedleTask(haystack="text", values=4),
    "niah_multiquery": NeedleTask(haystack="text", keys=4, queries=4),
}
"""RULER's eight tasks, under its names."""


@dataclass(frozen=True)
class NeedlePrompt:
    """What the model reads, and what it should say.

    Attributes:
        prompt: up to where the model goes on. answers: what its answer must contain. units: of the haystack.
    """

    prompt: str
    answers: tuple[str, ...]
    units: int

    def score(self, answer: str) -> float:
        """The share of the answers that `answer` contains, as RULER scores it."""
        return sum(value in answer for value in self.answers) / len(self.answers)


def sentences(text: str) -> list[str]:
    """The sentences of a text, with single spaces; what the haystack `text` is cut from.

    Raises:
        DataError: there is none.
    """
    found = re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text).strip())
    if not found[0]:
        raise DataError("the text for the haystack is empty: give one with at least a sentence.")
    return found


def needle_prompt(
    task: NeedleTask, seed: int, index: int, units: int, haystack: Sequence[str] = (_REPEATED,)
) -> NeedlePrompt:
    """Example `index` of `seed` with `units` lines or sentences around its needles.

    Needles and question do not depend on `units`, only their places do.

    Args:
        haystack: the sentences of the haystack `text`, at least one; not used by the others.
    Raises:
        DataError: fewer units than needles, or no sentences.
    """
    hidden = task.keys * task.values
    if units < hidden:
        raise DataError(f"a haystack of {units} units has no places for {hidden} needles: use {hidden} or more.")
    if task.haystack == "text" and not haystack:
        raise DataError("the haystack has no sentences: give at least one.")
    distractors = units if task.haystack == "needles" else 0
    keys = names(task.key_kind, seed, "needle keys", index, task.keys + distractors)
    values = names(task.value_kind, seed, "needle values", index, hidden + distractors)
    per_key = [values[place * task.values : (place + 1) * task.values] for place in range(task.keys)]
    needles = [_needle(task, key, value) for key, of_key in zip(keys, per_key, strict=False) for value in of_key]

    if task.haystack == "repeat":
        lines = [_REPEATED] * units
    elif task.haystack == "text":
        lines = [haystack[place % len(haystack)] for place in range(units)]
    else:
        others = zip(keys[task.keys :], values[hidden:], strict=True)
        lines = [_needle(task, key, value) for key, value in others]
    example = np.array([index], dtype=np.int64)
    places = distinct(seed, "needle places", example, hidden, units)[0].tolist()
    for place, needle in sorted(zip(places, needles, strict=True), reverse=True):
        lines.insert(place, needle)

    asked = permutation(seed, "needle questions", example, task.keys)[0, : task.queries].tolist()
    answers = tuple(value for place in asked for value in per_key[place])
    text = (" " if task.haystack == "text" else "\n").join(lines)
    return NeedlePrompt(_ask(task, text, _listed([keys[place] for place in asked])), answers, units)


def longest_needle_prompt(
    task: NeedleTask,
    seed: int,
    index: int,
    length: int,
    count_tokens: Callable[[str], int],
    haystack: Sequence[str] = (_REPEATED,),
) -> NeedlePrompt:
    """The example with the most units whose prompt and answers together have at most `length` tokens.

    Args:
        length: in tokens. count_tokens: of the model's tokenizer. The rest as `needle_prompt`.
    Raises:
        DataError: the needles and the question alone are longer, or there are too few names for needles that fill it.
    """

    def size(units: int) -> int:
        made = needle_prompt(task, seed, index, units, haystack)
        return count_tokens(f"{made.prompt} {', '.join(made.answers)}")

    least = task.keys * task.values
    if (smallest := size(least)) > length:
        raise DataError(
            f"a length of {length} is too short: needles and question alone take {smallest} tokens. Use a "
            "greater length."
        )
    limit = _most_units(task)
    low, high = least, min(2 * least, limit)
    while (taken := size(high)) <= length:
        if high == limit:
            raise DataError(
                f"{length:,} tokens are too many: a haystack of needles has at most {limit:,} of them, because no two "
                f"of its names are equal, and takes {taken:,} tokens. Use a length below that."
            )
        low, high = high, min(2 * high, limit)
    while high - low > 1:  # size(low) fits, size(high) does not
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= length else (low, middle)
    return needle_prompt(task, seed, index, low, haystack)


def _most_units(task: NeedleTask) -> int:
    """The most units that a haystack can have: in the haystack `needles`, every unit takes names of its own."""
    if task.haystack != "needles":
        return sys.maxsize
    keys, values = how_many(task.key_kind), how_many(task.value_kind)
    return min(
        sys.maxsize if keys is None else keys - task.keys,
        sys.maxsize if values is None else values - task.keys * task.values,
    )


def _needle(task: NeedleTask, key: str, value: str) -> str:
    return f"One of the special magic {task.value_kind} for {key} is: {value}."


def _ask(task: NeedleTask, text: str, keys: str) -> str:
    kind = task.value_kind
    if task.queries * task.values == 1:
        one = kind.removesuffix("s")
        return (
            f"A special magic {one} is hidden within the following text. Make sure to memorize it. I will quiz you "
            f"about the {one} afterwards.\n{text}\nWhat is the special magic {one} for {keys} mentioned in the "
            f"provided text? The special magic {one} for {keys} mentioned in the provided text is"
        )
    return (
        f"Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you "
        f"about the {kind} afterwards.\n{text}\nWhat are all the special magic {kind} for {keys} mentioned in the "
        f"provided text? The special magic {kind} for {keys} mentioned in the provided text are"
    )


def _listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])}, and {keys[-1]}"
