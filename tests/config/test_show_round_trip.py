import pytest
import yaml

from dla_train.config.catalog import find, shipped
from dla_train.config.load import load
from dla_train.config.show import differences, fingerprint, to_yaml
from dla_train.config.typed import plain
from dla_train.data.config import TextData

RECIPES = [recipe.name for recipe in shipped()]


@pytest.mark.parametrize("name", RECIPES)
def test_what_show_prints_is_the_same_recipe(cli, tmp_path, name):
    printed = cli("show", name)
    assert printed.code == 0
    (tmp_path / "again.yaml").write_text(printed.out)
    again = cli("show", "again.yaml")
    assert again.out == printed.out
    assert load(find(str(tmp_path / "again.yaml"))).recipe == load(find(name)).recipe
    assert yaml.safe_load(printed.out)["description"], "other YAML readers can read it, too"


@pytest.mark.parametrize(
    "settings",
    [
        ["model.mixer={kind: gated_deltanet, heads: 2, key_dim: 8, value_dim: 8, memory: fenwick}"],
        ["model.mixer={kind: attention, heads: 2}"],
        ["model.mixer.memory=single"],
        ["schedule={kind: wsd, warmup: 1, decay: 3}", "optimizer.eps=1e-20", "training.clip=null"],
        ["schedule=constant", "profile.start=3"],
        ["report.prompt=null", "data.suffixes=['.a', '.b']"],
        ["report.prompt='1e3'", "description='null'"],
        ["report.prompt='on'", "description='~'"],
        ['report.prompt="two\\nlines\\n\\n"', 'description="  spaces "'],
        ['report.prompt="trailing \\nspace: {x} # no"', "description=ünïcödé ▸"],
    ],
)
def test_every_kind_and_odd_text_survives(micro_recipe, tmp_path, settings):
    recipe = load(find(str(micro_recipe)), settings).recipe
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(recipe))
    assert load(find(str(path))).recipe == recipe


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (r"echo \${HOME}", "echo ${HOME}"),
        (r"\\\${a} and \\${data.window}", r"\${a} and \24"),
        (r"\${ unclosed \n", r"${ unclosed \n"),
        (r"a \ b $ {c} \\", r"a \ b $ {c} \\"),
    ],
)
def test_a_text_with_the_sign_of_a_reference_survives(micro_recipe, tmp_path, written, text):
    settings = [f"report.prompt={written}", rf"data.suffixes=['.\${{seed}}', '.{written}']", f"description='{written}'"]
    recipe = load(find(str(micro_recipe)), settings).recipe
    assert recipe.report.prompt == recipe.description == text
    assert isinstance(recipe.data, TextData)
    assert recipe.data.suffixes == (".${seed}", f".{text}")
    path = tmp_path / "again.yaml"
    path.write_text(to_yaml(recipe))
    again = load(find(str(path))).recipe
    assert again == recipe
    assert fingerprint(again) == fingerprint(recipe)


def test_short_and_long_form_of_a_section_are_one(micro_recipe):
    short = load(find(str(micro_recipe)), ["model.mixer.memory=fixed"]).recipe
    long = load(find(str(micro_recipe)), ["model.mixer.memory={kind: fixed, block: 512, capacity: 32}"]).recipe
    assert short == long
    assert fingerprint(short) == fingerprint(long)


def test_differences_name_the_keys_and_both_values(micro_recipe):
    one = plain(load(find(str(micro_recipe))).recipe)
    other = plain(load(find(str(micro_recipe)), ["optimizer.lr=0.5", "model.mixer.memory=single"]).recipe)
    found = differences(one, other)
    assert found["optimizer.lr"] == (0.01, 0.5)
    assert found["model.mixer.memory.kind"] == ("dynamic", "single")
    assert found["model.mixer.memory.capacity"] == (4, None)
    assert differences(one, one) == {}
    assert differences(one, {**one, "data": {**one["data"], "of_a_later_version": None}}) == {}
    reseeded = load(find(str(micro_recipe)), ["seed=1"]).recipe
    assert fingerprint(reseeded) != fingerprint(load(find(str(micro_recipe))).recipe)
