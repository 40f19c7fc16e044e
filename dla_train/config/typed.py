"""Turns plain values into frozen dataclasses: which keys exist, which types they take, and what to say if one does not
fit.

An OmegaConf structured config converts and checks each plain field. What OmegaConf cannot express is done here: a field
that may be one of several dataclasses (`Mamba2Config | AttentionConfig`), chosen by `kind`.
"""

import dataclasses
import functools
import math
import operator
import re
import types
import typing
from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar, Union

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dla_train.config.overrides import nearest
from dla_train.config.references import escaped
from dla_train.config.yaml_tree import Key, dotted

Config = TypeVar("Config")
_NO_VALUE = "???"  # OmegaConf's marker of a value that the user must give


class KeyProblem(Exception):
    """Something is wrong with one key; the caller adds where it was written.

    Attributes:
        key: the key itself.
        text: what is wrong, what is allowed, what to do; phrased to follow the key directly.
    """

    def __init__(self, key: Key, text: str) -> None:
        super().__init__(f"{dotted(key)}{text}")
        self.key = key
        self.text = text


def build(
    config_class: type[Config],
    values: Any,
    key: Key = (),
    *,
    written: Mapping[Key, str],
    kinds: Mapping[str, type] = MappingProxyType({}),
) -> Config:
    """Make a `config_class` from plain values.

    Args:
        config_class: a dataclass. values: of its fields. key: its place in the recipe.
        written: how each number was written in the recipe, by its full key; a text field takes this spelling.
        kinds: all that the section may be, of which `config_class` is one.
    Raises:
        KeyProblem: an unknown key, a missing one, a wrong type, or a value that the dataclass itself refuses
            (ValueError).
    """
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}  # type: ignore[arg-type]
    annotations = annotations_of(config_class)
    if not isinstance(values, dict):
        raise KeyProblem(key, f" must be a section with keys ({', '.join(fields)}), but is {_shown(values)}.")
    for name in values:
        if name not in fields:
            raise _unknown(key, name, values, list(fields), kinds)
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        inner = (*key, name)
        if name not in values or values[name] == _NO_VALUE:
            if _has_default(field):
                continue
            kind = f" (kind {values['kind']} needs it)" if "kind" in values else ""
            raise KeyProblem(inner, f" has no value{kind}: {_wanted(annotations[name], inner)}")
        default = str(getattr(field.default_factory, "kind", ""))
        arguments[name] = _convert(annotations[name], values[name], inner, written, default)
    try:
        return config_class(**arguments)
    except ValueError as error:
        raise refused(key, str(error), fields) from error


def _wanted(annotation: Any, key: Key) -> str:
    """What to do about a key that has no value."""
    choices = section_choices(annotation)
    if not choices:
        return f"set it in the recipe or with {dotted(key)}={_example(annotation)}."
    if "" in choices:
        inside = f"with keys ({', '.join(field.name for field in dataclasses.fields(choices['']) if field.init)})"
    else:
        inside = f"whose kind is one of {', '.join(choices)}"
    return f"it must be a section {inside}. `dla-train show tiny` prints a whole recipe."


def known_keys(config_class: type) -> Iterator[Key]:
    """Every key that may exist below `config_class`, for any kinds of its sections."""
    for name, annotation in annotations_of(config_class).items():
        yield (name,)
        for choice in section_choices(annotation).values():
            for inner in known_keys(choice):
                yield (name, *inner)


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as dicts, lists and scalars, ready for YAML or JSON."""
    return {field.name: _plain_value(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain_value(item) for name, item in value.items()}
    return value


def _convert(annotation: Any, value: Any, key: Key, written: Mapping[Key, str], default_kind: str = "") -> Any:
    if (section := named_sections(annotation)) is not None:
        is_left_out = value is None and type(None) in typing.get_args(annotation)
        return None if is_left_out else _convert_named(section, value, key, written)
    choices = section_choices(annotation)
    if not choices:
        return _convert_plain(annotation, _as_written(annotation, value, key, written), key)
    if value is None and type(None) in typing.get_args(annotation):
        return None
    if "" in choices:
        return build(choices[""], value, key, written=written)
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict):
        raise KeyProblem(key, f" must be one of {', '.join(choices)} or a section with a kind, but is {_shown(value)}.")
    if default_kind:
        value = {"kind": default_kind, **value}
    return build(_chosen(choices, value, key), value, key, written=written, kinds=choices)


def _convert_named(section: Any, value: Any, key: Key, written: Mapping[Key, str]) -> dict[str, Any]:
    """Sections under names that the user chooses."""
    if not isinstance(value, dict) or not value:
        raise KeyProblem(key, f" must be a section with at least one named section, but is {_shown(value)}.")
    return {str(name): _convert(section, inner, (*key, str(name)), written) for name, inner in value.items()}


def _chosen(choices: dict[str, type], value: dict[str, Any], key: Key) -> type:
    listed = ", ".join(choices)
    if "kind" not in value or value["kind"] == _NO_VALUE:
        if len(choices) == 1:
            return next(iter(choices.values()))
        raise KeyProblem((*key, "kind"), f" has no value: it must be one of {listed}.")
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in choices:
        guess = nearest(kind, choices) if isinstance(kind, str) else None
        hint = f" Did you mean {guess}?" if guess else ""
        raise KeyProblem((*key, "kind"), f" must be one of {listed}, but is {_shown(kind)}.{hint}")
    return choices[kind]


def _as_written(annotation: Any, value: Any, key: Key, written: Mapping[Key, str]) -> Any:
    """For a field that takes a text, or a list of texts: `2024_01` and `007` as written, not as numbers."""
    bare = _without_none(annotation)
    if bare is str:
        return value if isinstance(value, str) else written.get(key, value)
    if isinstance(value, list) and typing.get_origin(bare) in (tuple, list):
        of_items = typing.get_args(bare)[0]
        return [_as_written(of_items, item, (*key, place), written) for place, item in enumerate(value)]
    return value


def _convert_plain(annotation: Any, value: Any, key: Key) -> Any:
    others, words = _words_apart(annotation)
    bare = _without_none(others)
    if type(value) is bare and (bare in (bool, int, str) or (bare is float and math.isfinite(value))):
        return value  # OmegaConf would return the same, but takes a millisecond per key
    if isinstance(value, str) and value in words:
        return value
    allowed = _described(annotation)
    # OmegaConf accepts 3 as true and .nan as a number; in a recipe both are mistakes. It also accepts nested lists, and
    # fails with a message of its own if there is a section in place of a list.
    slip = (
        (bare is bool and value not in (True, False, None))
        or (isinstance(value, float) and not math.isfinite(value))
        or (typing.get_origin(bare) in (tuple, list) and _is_nested(value))
    )
    try:
        if slip:
            raise KeyProblem(key, "")
        structured = _leaf(others)
        # References were resolved before: what still looks like one is literal text.
        converted = OmegaConf.to_container(OmegaConf.merge(structured, {"value": escaped(value)}), resolve=True)
    except (OmegaConfBaseException, KeyProblem) as error:
        hint = ""
        if bare is int and isinstance(value, float) and math.isfinite(value) and value == int(value):
            hint = f" Write {int(value)}."
        raise KeyProblem(key, f" must be {allowed}, but is {_shown(value)}.{hint}") from error
    assert isinstance(converted, dict)
    result = converted["value"]
    if isinstance(result, float) and not math.isfinite(result):  # it was the text `nan`; a YAML number would be `.nan`
        raise KeyProblem(key, f" must be {allowed}, but is {_shown(value)}.")
    return tuple(result) if isinstance(result, list) and typing.get_origin(bare) is tuple else result


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, list | dict) for item in value))


@functools.cache
def _leaf(annotation: Any) -> Any:
    """A structured config with the single field `value`; it can be shared, because merging copies it."""
    field = ("value", annotation, dataclasses.field(default=MISSING))
    return OmegaConf.structured(dataclasses.make_dataclass("Leaf", [field]))


@functools.cache
def annotations_of(config_class: type) -> dict[str, Any]:
    """The fields of a dataclass that a recipe may set, with their types."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class) if field.init}


def named_sections(annotation: Any) -> Any | None:
    """The class `Section` of `dict[str, Section]` or `dict[str, Section] | None`; None for anything else, including
    `dict[str, Any]`."""
    bare = _without_none(annotation)
    if typing.get_origin(bare) is not dict or typing.get_args(bare)[1] is Any:
        return None
    return typing.get_args(bare)[1]


@functools.cache
def section_choices(annotation: Any) -> dict[str, type]:
    """The dataclasses that `annotation` admits, by kind ("" for one without kinds); empty for a plain field."""
    members = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    sections = [member for member in members if dataclasses.is_dataclass(member) and isinstance(member, type)]
    return {str(getattr(section, "kind", "")): section for section in sections}


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _without_none(annotation: Any) -> Any:
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    return members[0] if _is_union(annotation) and len(members) == 1 else annotation


@functools.cache
def _words_apart(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    """`int` and the word `nodes` for `int | Literal["nodes"]`; any other annotation as it is, and no words."""
    members = typing.get_args(annotation) if _is_union(annotation) else ()
    words = [member for member in members if typing.get_origin(member) is Literal]
    others = [member for member in members if member not in words]
    if not words or set(others) <= {type(None)}:
        return annotation, ()
    return functools.reduce(operator.or_, others), tuple(word for member in words for word in typing.get_args(member))


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _unknown(
    section: Key, name: str, values: dict[str, Any], allowed: list[str], kinds: Mapping[str, type]
) -> KeyProblem:
    fields = {kind: list(annotations_of(choice)) for kind, choice in kinds.items()}
    of_all = list(dict.fromkeys([*allowed, *(field for own in fields.values() for field in own)]))
    # What only another kind has must be nearer to be meant.
    meant = name if name in of_all else nearest(name, of_all, cutoff=0.78) or nearest(name, allowed)
    having = [kind for kind, own in fields.items() if meant in own and meant not in allowed]
    hint = f" Did you mean {dotted((*section, meant))}?" if meant and meant != name else ""
    where = f"in {dotted(section)}" if section else "at the top level"
    kind = f" (kind {values['kind']})" if "kind" in values else ""
    text = f" is not a key (given {_shown(values[name])}).{hint} Keys {where}{kind}: {', '.join(allowed)}."
    if meant and having:
        listed = " and ".join(filter(None, (", ".join(having[:-1]), having[-1])))
        such = " ".join([f"{dotted(section)}={having[0]}", *_settings((*section, meant), values[name])])
        text += f" {'It' if meant == name else meant} is one of kind {listed}: {such}."
    return KeyProblem((*section, name), text)


def _settings(key: Key, value: Any) -> list[str]:
    """A value as it is set on the command line."""
    if not isinstance(value, dict) or not value:
        return [f"{dotted(key)}={_shown(value)}"]
    return [setting for name, inner in value.items() for setting in _settings((*key, name), inner)]


def refused(section: Key, message: str, fields: Container[str]) -> KeyProblem:
    """The message of a dataclass's own check, attributed to the field that it names first: `steps is 0; it must be at
    least 1`."""
    words = re.findall(r"[\w.]*\w", message)
    name = next((word for word in words if word.partition(".")[0] in fields), None)
    if name is None:
        return KeyProblem(section, f": {message.rstrip('.')}.")
    rest = message.rstrip(".")
    text = rest.removeprefix(name) if rest.startswith(f"{name} ") else f": {rest}"
    return KeyProblem((*section, *name.split(".")), f"{text}.")


_SIMPLE: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "NUMBER"),
    float: ("a finite number", "NUMBER"),
    bool: ("true or false", "true"),
    str: ("a text", "TEXT"),
    dict[str, Any]: ("a section of keys and values", "{KEY: VALUE}"),
}


def _described(annotation: Any) -> str:
    others, words = _words_apart(annotation)
    if words:
        return " or ".join([_described(others), *words])
    bare = _without_none(annotation)
    optional = " or null" if bare is not annotation else ""
    if typing.get_origin(bare) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(bare)))}{optional}"
    if typing.get_origin(bare) in (tuple, list):
        arguments = typing.get_args(bare)
        count = "" if Ellipsis in arguments or typing.get_origin(bare) is list else f"{len(arguments)} "
        text = f"a list of {count}values, each {_described(arguments[0])}"
        return f"{text}; or null" if optional else text
    return _SIMPLE.get(bare, (str(bare), ""))[0] + optional


def _example(annotation: Any) -> str:
    bare = _without_none(annotation)
    if named_sections(annotation) is not None:
        return "{NAME: {...}}"
    if choices := section_choices(annotation):
        return next(iter(choices)) or "..."
    if typing.get_origin(bare) is Literal:
        return str(typing.get_args(bare)[0])
    return _SIMPLE.get(bare, ("", "..."))[1]


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
