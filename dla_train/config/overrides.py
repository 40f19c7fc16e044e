"""`key=value` from the command line, laid over the values of a recipe file."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dla_train.config.yaml_tree import Key, YamlTree, dotted, parse_value
from dla_train.errors import UsageError


@dataclass(frozen=True)
class Override:
    """One `key=value`.

    Attributes:
        key: what is set.
        value: what it is set to.
        written: how the numbers in it were written, by their keys inside `value`.
    """

    key: Key
    value: Any
    written: dict[Key, str] = field(default_factory=dict)


def parse_override(text: str) -> Override:
    """Split `key=value`; the value is YAML (`2`, `1e-3`, `true`, `null`, `[0.9, 0.95]`, `{kind: dynamic}`) or plain
    text.

    Raises:
        UsageError: there is no `=`, no key before it, or nothing behind it.
    """
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"'{text}' is not a setting: write key=value, for example training.steps=100.")
    if not value.strip():  # in a file that is null; here it is an unset variable of the shell, as in `clip=$CLIP`
        key = name.strip()
        raise UsageError(
            f"on the command line: {key} is given no value (is it from a variable that is not set?). Write "
            f"{key}=VALUE; {key}=null for none, or {key}='\"\"' for an empty text."
        )
    tree = parse_value(value)
    return Override(tuple(parts), tree.values, tree.written)


@dataclass(frozen=True)
class Overridden:
    """Values with overrides laid over them.

    Attributes:
        values: the resulting ones.
        keys: the keys that overrides have set; each stands for everything below it.
        written: as `YamlTree.written`, for the resulting values.
    """

    values: dict[str, Any]
    keys: frozenset[Key]
    written: dict[Key, str]


def apply_overrides(tree: YamlTree, overrides: Sequence[Override]) -> Overridden:
    """Lay `overrides` over the values of `tree`; later ones win.

    Where an override gives a section another `kind` (`model.mixer.memory=fenwick` or
    `model.mixer.memory.kind=fenwick`), the section starts anew with that kind's defaults, because the old kind's fields
    mean nothing, or something else, to the new one. Such an override is applied before those of fields inside its
    section, in whatever order the command line has them, so that these fields are kept.
    """
    result = _copy(tree.values)
    origins: set[Key] = set()
    written = dict(tree.written)
    for override in _kinds_first(overrides):
        anew = _assign(result, override)
        replaced = _section_of(override.key) if anew else override.key
        origins.add(replaced)
        written = {key: text for key, text in written.items() if key[: len(replaced)] != replaced}
        written |= {(*override.key, *inner): text for inner, text in override.written.items()}
    return Overridden(result, frozenset(origins), written)


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The choice that `word` was probably meant to be, ignoring case; a `cutoff` closer to 1 asks for more similarity,
    and should be higher the more choices there are."""
    by_name = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(word.casefold(), list(by_name), n=1, cutoff=cutoff)
    return by_name[found[0]] if found else None


def _kinds_first(overrides: Sequence[Override]) -> list[Override]:
    """The overrides in the given order, except that one that may name a kind comes before the fields of its section,
    but never before an override that sets that section as a whole."""
    ordered: list[Override] = []
    for override in overrides:
        place, section = len(ordered), _section_of(override.key)
        if override.key[-1] == "kind" or isinstance(override.value, str):
            while place and not _is_at_or_above(_section_of(ordered[place - 1].key), section):
                place -= 1
        ordered.insert(place, override)
    return ordered


def _is_at_or_above(section: Key, other: Key) -> bool:
    return other[: len(section)] == section


def _section_of(key: Key) -> Key:
    return key[:-1] if key[-1] == "kind" else key


def _assign(values: dict[str, Any], override: Override) -> bool:
    """Set the value of an override in `values`; returns whether its section was emptied for it."""
    *path, last = override.key
    section: dict[str, Any] = values
    for depth, part in enumerate(path):
        inner: Any = section.get(str(part))
        if isinstance(inner, str):
            inner = {"kind": inner}  # `memory: dynamic` is short for this
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            here = dotted(override.key[: depth + 1])
            raise UsageError(
                f"{dotted(override.key)} (given on the command line): {here} is a value, it has no {last} inside."
            )
        section[str(part)] = inner
        section = inner
    here = section.get(str(last))
    if isinstance(here, dict) and isinstance(override.value, str) and here.get("kind") == override.value:
        return False  # `memory=dynamic` where the kind is dynamic already: changes nothing, like `memory.kind=dynamic`
    anew = last == "kind" and section.get("kind") not in (None, override.value)
    if anew:
        section.clear()
    section[str(last)] = _copy(override.value)
    return anew


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _copy(inner) for name, inner in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
