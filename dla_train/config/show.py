"""A recipe as YAML that is itself a recipe, and the differences between two recipes."""

import hashlib
import json
from typing import Any

import yaml

from dla_train.config.references import escaped
from dla_train.config.typed import plain
from dla_train.config.yaml_tree import CoreSchemaLoader


def to_yaml(config: Any) -> str:
    """YAML of every field of a dataclass, including defaults."""
    return yaml.dump(escaped(plain(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def fingerprint(config: Any) -> str:
    """16 hex digits that are equal if and only if all fields are (up to hash collisions)."""
    return fingerprint_of_plain(plain(config))


def fingerprint_of_plain(values: dict[str, Any]) -> str:
    """The `fingerprint` of the plain values that `plain` returned."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The keys in which two plain recipes differ, with both values. A missing key counts as None, so a recipe of a
    version that did not know the key yet does not differ from one in which it is null."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        key = f"{prefix}{name}"
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differences(before, after, f"{key}.")
        elif before != after:
            found[key] = (before, after)
    return found


class _Dumper(yaml.SafeDumper):
    """Writes by the same rules by which recipes are read: `1e-08` is a number. Lists are written on one line."""

    yaml_implicit_resolvers = CoreSchemaLoader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value out each time it occurs."""
        return True


_Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", repr(value)))
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
