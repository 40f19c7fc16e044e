import math

import pytest

from dla_train.config.yaml_tree import parse_tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("1_000", 1000),
        ("007", 7),
        ("yes", "yes"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("True", True),
        ("~", None),
        ("", None),
        ("'3'", "3"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = parse_tree(f"a: {text}", "x").values["a"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_has_its_line():
    tree = parse_tree("a: 1\nb:\n  c: 2\n  d: {e: 3,\n    f: [4,\n 5]}\n", "x")
    assert tree.values == {"a": 1, "b": {"c": 2, "d": {"e": 3, "f": [4, 5]}}}
    lines = {key: line for key, line in tree.lines.items() if key}
    assert lines[("a",)] == 1
    assert lines[("b",)] == 2
    assert lines[("b", "c")] == 3
    assert lines[("b", "d", "e")] == 4
    assert lines[("b", "d", "f")] == 5
    assert lines[("b", "d", "f", 1)] == 6
