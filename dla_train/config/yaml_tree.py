"""YAML with the line of every value, so that a later error can say where the value was written.

The scalars are those of YAML 1.2's core schema, except that whole numbers are decimal only: `1e-3` is a number (a text
in YAML 1.1), and `on`, `no` and `12:30` are texts (true, false and 750 in YAML 1.1).
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from dla_train.errors import UsageError

Key = tuple[str | int, ...]
"""The place of a value: `("model", "mixer", "heads")`; items of a list by their index."""


@dataclass(frozen=True)
class YamlTree:
    """The values of one YAML text.

    Attributes:
        values: what it holds.
        lines: the line (from 1) on which each key begins.
        written: how each number and boolean was written, so that `007` can serve as a text.
    """

    values: Any
    lines: dict[Key, int] = field(default_factory=dict)
    written: dict[Key, str] = field(default_factory=dict)


class CoreSchemaLoader(yaml.SafeLoader):
    """SafeLoader (no Python objects) with YAML 1.2 core scalars."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  the base class declares it as a class attribute


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
):
    CoreSchemaLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), [letter if letter != "\0" else "" for letter in _first]
    )


_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_REWRITTEN = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    try:
        return int(str(node.value).replace("_", ""))
    except ValueError as error:  # Python limits the number of digits
        raise yaml.MarkedYAMLError(problem="a number of too many digits", problem_mark=node.start_mark) from error


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(?=inf|nan)", "", str(node.value).lower().replace("_", "")))


CoreSchemaLoader.add_constructor("tag:yaml.org,2002:int", _whole_number)
CoreSchemaLoader.add_constructor("tag:yaml.org,2002:float", _number)


def parse_tree(text: str, shown_as: str) -> YamlTree:
    """Parse YAML text.

    Args:
        text: of the file. shown_as: how messages name the file.
    Raises:
        UsageError: it is not valid YAML, has an unknown tag, or gives a key twice.
    """
    loader = CoreSchemaLoader(text)
    tree = YamlTree(None)
    try:
        node = loader.get_single_node()
        values = None if node is None else _construct(loader, node, (), tree, shown_as, open_nodes=())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{shown_as}:{mark.line + 1}" if mark else shown_as
        raise UsageError(f"{place}: not valid YAML: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{shown_as}: not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UsageError(f"{shown_as}: its lists or sections are nested too deep for a recipe.") from error
    finally:
        loader.dispose()
    return replace(tree, values=values)


def parse_value(text: str) -> YamlTree:
    """Read the right side of `key=value`: a YAML scalar, list or `{...}`; anything else is taken as plain text."""
    try:
        tree = parse_tree(text, text)
    except UsageError:
        return YamlTree(text)
    # In YAML, `a: b` is a mapping, `a #1` and `&a b` have parts that do not belong to the value, and lines are folded;
    # but whoever typed a prompt or a path means all of it as text.
    is_mapping = isinstance(tree.values, dict) and not text.lstrip().startswith("{")
    is_cut = isinstance(tree.values, str) and text.strip()[:1] not in ("'", '"') and tree.values != text.strip()
    is_comment = tree.values is None and text.lstrip().startswith("#")
    return YamlTree(text) if is_mapping or is_cut or is_comment else tree


def _construct(
    loader: CoreSchemaLoader,
    node: yaml.Node,
    key: Key,
    tree: YamlTree,
    shown_as: str,
    open_nodes: tuple[yaml.Node, ...],
) -> Any:
    line = node.start_mark.line + 1
    tree.lines.setdefault(key, line)
    if node in open_nodes:
        raise UsageError(f"{shown_as}:{line}: an alias (*name) stands inside what it refers to.")
    open_nodes = (*open_nodes, node)
    if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
        raise UsageError(f"{shown_as}:{line}: the YAML tag {node.tag} is unknown here. Write the value without a tag.")
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, item, (*key, index), tree, shown_as, open_nodes) for index, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value)
            inner = (*key, name)
            here = name_node.start_mark.line + 1
            if name in values:
                raise UsageError(
                    f"{shown_as}:{here}: {dotted(inner)} is given twice, first in line {tree.lines[inner]}. Keep one."
                )
            tree.lines[inner] = here
            values[name] = _construct(loader, value_node, inner, tree, shown_as, open_nodes)
        return values
    if node.tag in _REWRITTEN:
        tree.written[key] = str(node.value)
    return loader.construct_object(node)


def dotted(key: Key) -> str:
    """Write a key as users do: `model.mixer.heads`."""
    return ".".join(str(part) for part in key)
