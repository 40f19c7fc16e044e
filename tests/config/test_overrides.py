import pytest

from dla_train.config.overrides import apply_overrides, parse_override
from dla_train.errors import UsageError


def _apply(values, *settings):
    return apply_overrides(values, [parse_override(text) for text in settings])[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=2", 2),
        ("a.b=1e-3", 1e-3),
        ("a.b=true", True),
        ("a.b=null", None),
        ("a.b=", None),
        ("a.b=[0.9, 0.95]", [0.9, 0.95]),
        ("a.b={kind: dynamic}", {"kind": "dynamic"}),
        ("a.b=x=y", "x=y"),
        ("a.b=def f(x): return", "def f(x): return"),
        ("a.b=[unclosed", "[unclosed"),
        ("a.b=off", "off"),
    ],
)
def test_values_are_yaml_or_plain_text(text, value):
    override = parse_override(text)
    assert override.key == ("a", "b")
    assert override.value == value
    assert type(override.value) is type(value)


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", ".a=3"])
def test_what_is_not_key_value_is_refused(text):
    with pytest.raises(UsageError, match="write key=value"):
        parse_override(text)


def test_a_short_section_grows_when_something_inside_it_is_set():
    assert _apply({"memory": "dynamic"}, "memory.capacity=4") == {"memory": {"kind": "dynamic", "capacity": 4}}


@pytest.mark.parametrize("change", ["memory=fenwick", "memory.kind=fenwick"])
@pytest.mark.parametrize("order", [1, -1])
def test_another_kind_drops_the_fields_of_the_old_one_and_keeps_those_set_beside_it(change, order):
    values = {"memory": {"kind": "dynamic", "capacity": 4, "threshold": 0.6}}
    settings = [change, "memory.capacity=7"][::order]
    assert _apply(values, *settings) == {"memory": {"kind": "fenwick", "capacity": 7}}


def test_the_same_kind_drops_nothing():
    values = {"memory": {"kind": "dynamic", "capacity": 4}}
    assert _apply(values, "memory.kind=dynamic") == values


def test_the_later_of_two_settings_wins():
    assert _apply({"seed": 0}, "seed=1", "seed=2") == {"seed": 2}


def test_the_file_values_are_not_changed():
    values = {"a": {"b": [1]}}
    _apply(values, "a.b=[2]", "a.c=3")
    assert values == {"a": {"b": [1]}}
