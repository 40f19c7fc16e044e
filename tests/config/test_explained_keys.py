"""`dla-train keys`: every key of a recipe is explained."""

import re

import pytest

from dla_train.config.explain import sections
from dla_train.config.load import recipe_keys


def test_every_section_of_a_recipe_is_there():
    there = {f"{place}.{key}".strip(".") for section in sections() for place in section.places for key in section.keys}
    assert {key.replace(".NAME", "") for key in there} >= {key for key in recipe_keys() if not key.endswith("kind")}


@pytest.mark.parametrize("section", sections(), ids=lambda section: f"{section.places[0]}-{section.kind}")
def test_every_key_is_explained(section):
    assert [key for key in section.keys if not re.search(rf"\b{key}\b", section.config.__doc__)] == []


def test_a_section_shows_its_keys_with_their_defaults(cli):
    done = cli("keys", "checkpoint")
    assert done.code == 0, done.err
    assert done.out.startswith("checkpoint\n    When to save and what to keep.")
    assert "\n        keep_last: how many of the newest stay." in done.out
    assert done.out.endswith("\n    Defaults: every: 100, keep_last: 2, keep_every: null, background: true.\n")
    assert "No default: heads, memory. Defaults: head_dim: 64" in cli("keys", "model.mixer").out
    assert cli("keys", "data.curriculum").out.endswith("\n    No default: windows, steps.\n")


@pytest.mark.parametrize(
    ("name", "headings"),
    [
        ("training.clip", ["training"]),
        ("clip", ["training"]),
        ("optimizer", ["optimizer (kind adamw)", "optimizer (kind muon)"]),
        ("memory.steer", ["model.mixer.memory and model.hybrid.mixer.memory (kind dynamic)"]),
        ("seed=3", ["(top level)"]),
        ("logging", ["logging", "logging.wandb"]),
        ("logging.", ["logging", "logging.wandb"]),
        ("optimizer.kind", ["optimizer (kind adamw)", "optimizer (kind muon)"]),
        ("muon", ["optimizer (kind muon)"]),
        ("data.sources.web", ["data.sources.NAME", "data.sources.NAME"]),
        ("data.sources.web.at_end", ["data.sources.NAME"]),
    ],
)
def test_a_name_chooses_the_sections_with_it(cli, name, headings):
    assert re.findall(r"^\S.*", cli("keys", name).out, re.MULTILINE) == headings


def test_no_name_is_all_sections(cli):
    assert cli("keys", "").out == cli("keys").out


def test_an_unknown_name_is_refused(cli):
    done = cli("keys", "training.clp")
    assert done.code == 2
    assert "a recipe has no section or key training.clp. Did you mean clip? `dla-train keys` lists all." in done.err
    assert "a recipe has no section or key sources.web.at." in cli("keys", "sources.web.at").err
    assert "takes one section or key, given steps=3 as well." in cli("keys", "training", "steps=3").err
