"""What the keys of a recipe mean: the docstrings of the dataclasses that the recipe is made of, section by section."""

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from dla_train.config.recipe import Recipe
from dla_train.config.typed import annotations_of, named_sections, section_choices


@dataclasses.dataclass(frozen=True)
class Section:
    """One kind of section.

    Attributes:
        places: where it may stand, such as `model.mixer` and `model.hybrid.mixer`; the top level is "". NAME stands for
            a name of the user's choice.
        kind: "" for a section without kinds.
        config: its dataclass.
    """

    places: tuple[str, ...]
    kind: str
    config: type

    @property
    def keys(self) -> list[str]:
        """Its keys, without the place."""
        return [name for name in annotations_of(self.config) if name != "kind"]

    def is_below(self, name: str) -> bool:
        """Whether it is the section `name`, or a part of it."""
        words = name.split(".")
        return any(_is(words, place.split(".")[: len(words)]) for place in self.places)

    def has(self, name: str) -> bool:
        """Whether one of its keys ends like `name`: `clip`, `memory.steer`, `optimizer.kind`."""
        words = name.split(".")
        keys = [*self.keys, *(["kind"] if self.kind else [])]
        return any(_is(words, [*place.split("."), key][-len(words) :]) for place in self.places for key in keys)

    def text(self) -> str:
        """Its heading, what it is for, its keys, and their defaults."""
        heading = " and ".join(place or "(top level)" for place in self.places)
        doc = inspect.getdoc(self.config) or ""
        explained = [line for line in doc.splitlines() if line != "Attributes:"]
        needed, defaults = [], []
        for field in dataclasses.fields(self.config):
            if field.name not in self.keys:
                continue
            if field.default is not dataclasses.MISSING:
                defaults.append(f"{field.name}: {json.dumps(field.default)}")
            elif field.default_factory is dataclasses.MISSING:
                needed.append(field.name)
        named = {"No default": needed, "Defaults": defaults}
        ends = " ".join(f"{what}: {', '.join(names)}." for what, names in named.items() if names)
        wrapped = textwrap.wrap(ends, 116)
        lines = [*explained, *([""] if wrapped else []), *wrapped]
        kind = f" (kind {self.kind})" if self.kind else ""
        return f"{heading}{kind}\n" + "\n".join(f"    {line}".rstrip() for line in lines)


def _is(words: list[str], known: list[str]) -> bool:
    return len(words) == len(known) and all(those in (word, "NAME") for word, those in zip(words, known, strict=True))


def sections() -> list[Section]:
    """All sections, in the order of a recipe; one that may stand in several places is there once."""
    places: dict[type, list[str]] = {}
    for place, config in _walk("", Recipe):
        places.setdefault(config, []).append(place)
    return [
        Section(tuple(dict.fromkeys(where)), str(getattr(config, "kind", "")), config)
        for config, where in places.items()
    ]


def _walk(place: str, config: type) -> Iterator[tuple[str, type]]:
    yield place, config
    for name, annotation in annotations_of(config).items():
        inner = f"{place}.{name}".strip(".")
        named: Any = named_sections(annotation)
        choices = section_choices(annotation) if named is None else section_choices(named)
        for choice in choices.values():
            yield from _walk(inner if named is None else f"{inner}.NAME", choice)
