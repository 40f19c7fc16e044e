import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.config.overrides import apply_overrides, parse_override
from dla_train.config.show import to_yaml
from dla_train.config.yaml_tree import YamlTree
from dla_train.errors import UsageError


def _apply(values, *settings):
    return apply_overrides(YamlTree(values), [parse_override(text) for text in settings]).values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=2", 2),
        ("a.b=1e-3", 1e-3),
        ("a.b=true", True),
        ("a.b=null", None),
        ('a.b=""', ""),
        ("a.b=[0.9, 0.95]", [0.9, 0.95]),
        ("a.b={kind: dynamic}", {"kind": "dynamic"}),
        ("a.b=x=y", "x=y"),
        ("a.b=def f(x): return", "def f(x): return"),
        ("a.b=[unclosed", "[unclosed"),
        ("a.b=off", "off"),
        ("a.b=d/my #1 words.txt", "d/my #1 words.txt"),
        ("a.b=# Title", "# Title"),
        ("a.b=Once upon\na time", "Once upon\na time"),
        ("a.b=&a b", "&a b"),
        ("a.b=--- foo", "--- foo"),
        ("a.b='quoted # text'", "quoted # text"),
        ("a.b= 2 ", 2),
        ("a.b= two ", "two"),
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


@pytest.mark.parametrize("text", ["initial_weights=", "initial_weights=  "])
def test_an_unset_variable_of_the_shell_is_not_null(text):
    """`initial_weights=$BASE` began with random weights where BASE was not set."""
    with pytest.raises(UsageError, match=r"initial_weights is given no value .* initial_weights=null for none"):
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
    assert _apply(values, "memory=dynamic") == values
    assert _apply(values, "memory=dynamic", "memory.capacity=5") == {"memory": {"kind": "dynamic", "capacity": 5}}


def test_the_later_of_two_settings_wins():
    assert _apply({"seed": 0}, "seed=1", "seed=2") == {"seed": 2}
    whole, of_kind = "memory={kind: dynamic, capacity: 9}", {"kind": "dynamic", "capacity": 9}
    assert _apply({}, "memory.capacity=3", whole) == {"memory": of_kind}
    assert _apply({}, whole, "memory.capacity=3") == {"memory": {"kind": "dynamic", "capacity": 3}}
    assert _apply({}, whole, "memory.capacity=3", "memory=fenwick") == {"memory": {"kind": "fenwick", "capacity": 3}}
    assert _apply({}, "a.memory=fenwick", "a={kind: x}", "seed=1") == {"a": {"kind": "x"}, "seed": 1}
    assert _apply({}, "memory.capacity=3", "memory=null") == {"memory": None}


@pytest.mark.parametrize("written", ["2024_01", "007", "1e3", "1.10", "true", "True", "-0"])
def test_where_a_text_is_wanted_a_number_is_the_text_that_was_written(micro_recipe, tmp_path, written):
    on_the_command_line = load(find(str(micro_recipe)), [f"report.prompt={written}", f"description={written}"])
    path = tmp_path / "mine.yaml"
    text = micro_recipe.read_text().replace("alpha beta", written)
    path.write_text(text.replace("description: a micro model for tests", f"description: {written}"))
    in_the_file = load(find(str(path)))
    for loaded in (on_the_command_line, in_the_file):
        assert loaded.recipe.report.prompt == loaded.recipe.description == written
        (tmp_path / "again.yaml").write_text(to_yaml(loaded.recipe))
        assert load(find(str(tmp_path / "again.yaml"))).recipe == loaded.recipe


def test_what_was_written_goes_with_its_value(micro_recipe):
    def prompt(*settings):
        return load(find(str(micro_recipe)), settings).recipe.report.prompt

    assert prompt("report.prompt=007", "report.prompt=08") == "08"
    assert prompt("report.prompt=007", "report.prompt=plain") == "plain"
    assert prompt("report.prompt=007", "report.prompt=null") is None
    assert prompt("report={prompt: 007, max_tokens: 0_8}") == "007"
    assert prompt("training.steps=1_0", "report.prompt=${training.steps}") == "10"


def test_the_file_values_are_not_changed():
    values = {"a": {"b": [1]}}
    _apply(values, "a.b=[2]", "a.c=3")
    assert values == {"a": {"b": [1]}}
