"""A recipe as YAML that is itself a recipe, and what tells two recipes apart."""

import hashlib
import json
from typing import Any

import yaml

from dla_train.config.references import escaped
from dla_train.config.typed import plain
from dla_train.config.yaml_tree import CoreSchemaLoader


def to_yaml(config: Any) -> str:
    """Every field of a dataclass, defaults included, as YAML."""
    return yaml.dump(escaped(plain(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def fingerprint(config: Any) -> str:
    """16 hex digits that are equal exactly where all fields are."""
    return fingerprint_of_plain(plain(config))


def fingerprint_of_plain(values: dict[str, Any]) -> str:
    """`fingerprint` of what `plain` made."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The keys in which two plain recipes differ, with both values. A key that one lacks has None there, so a recipe of
    a version that did not know it yet does not differ from one in which it is null."""
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
    """Writes by the rules that recipes are read with: `1e-08` is a number; a list stands in one line."""

    yaml_implicit_resolvers = CoreSchemaLoader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Write values out where they occur twice."""
        return True


_Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", repr(value)))
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
