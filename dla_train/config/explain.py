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
        places: where it may stand, such as `model.mixer` and `model.hybrid.mixer`; the top level is "".
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
