"""The study's runs are recipes that exist, its measurements those of the trained model, and it goes on where it was."""

import json

import pytest
from PIL import Image

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data.synthetic_config import SyntheticData
from dla_train.evaluation.recall import recall
from dla_train.evaluation.trained import load_trained
from dla_train.models import AttentionConfig, DynamicMemory, FixedMemory
from dla_train.study.__main__ import main
from dla_train.study.plan import BACKBONES, TASKS, VARIANTS, study_runs
from dla_train.study.table import to_markdown

ALL = list(study_runs(list(TASKS), list(BACKBONES), list(VARIANTS), None, 3, None))


def test_every_run_is_a_recipe_with_its_state_seed_task_and_the_slots_of_the_others():
    assert len({run.name for run in ALL}) == len(ALL) == 2 * 2 * len(VARIANTS) * 2 * 3
    for run in ALL[: 2 * 2 * 2 * len(VARIANTS)]:
        recipe = load(find(run.recipe), run.settings).recipe
        data, mixer = recipe.data, recipe.model.mixer
        assert isinstance(data, SyntheticData)
        assert not isinstance(mixer, AttentionConfig)
        assert recipe.seed == run.seed
        assert data.task.kind == run.task
        assert data.window == 48
        assert getattr(mixer, BACKBONES[run.backbone][0]) == run.state
        assert mixer.kind == {"mamba2": "mamba2", "gdn": "gated_deltanet"}[run.backbone]
        assert getattr(mixer.memory, "capacity", 7) == 7, "matched slots"
        if isinstance(mixer.memory, FixedMemory):
            assert mixer.memory.block * 7 in range(data.window, data.window + 7)
        if isinstance(mixer.memory, DynamicMemory):
            assert mixer.memory.threshold == 0.6
            assert (mixer.memory.calibrate_rate, mixer.memory.steer, mixer.memory.gate) == {
                "dla": (None, None, "straight_through"),
                "dla steered": (0.2, 0.1, "straight_through"),
                "dla steered hard": (0.2, 0.1, "hard"),
            }[run.variant]


def test_the_study_trains_measures_and_goes_on(tmp_path, capsys, monkeypatch, cache_directory):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLA_TRAIN_CACHE", str(cache_directory))
    few = [
        "--tasks",
        "mqar",
        "--backbones",
        "gdn",
        "--variants",
        "fixed",
        "--states",
        "8",
        "--seeds",
        "1",
        "--jobs",
        "1",
    ]
    arguments = [*few, "--steps", "32", "--out", "found", "--runs", "runs"]
    assert main(arguments) == 0
    assert "1 of 1 runs done" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "found" / "results.json").read_text())
    assert (result["task"], result["variant"], result["steps"], result["state"]) == ("mqar", "fixed", 32, 8)
    trained = load_trained(tmp_path / "runs" / "mqar-gdn-fixed-k8-seed0-32steps")
    data = trained.recipe.data
    assert isinstance(data, SyntheticData)
    again = recall(trained.model, data.task, vocab_size=32, window=48, examples=512)
    assert result["right"] == {str(size): share for size, share in again.items()}
    with Image.open(tmp_path / "found" / "recall.png") as picture:
        assert picture.size[0] > 400

    (tmp_path / "runs" / "mqar-gdn-fixed-k8-seed0-32steps" / "checkpoints").rename(tmp_path / "gone")
    assert main(arguments) == 0, "what is done is not done again"
    assert main([*arguments, "--minutes", "0", "--seeds", "2"]) == 0
    assert "1 of 2 runs done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "dla 0.5"], "there is no variant 'dla 0.5' in the study; there are single, fixed"),
        (["--tasks", "copy"], "there is no task 'copy' in the study"),
        (["--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["--out", "/proc/nowhere"], "cannot make /proc/nowhere"),
    ],
)
def test_what_cannot_be_is_named(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_table_has_means_and_extremes():
    same = {"task": "mqar", "backbone": "gdn", "state": 8, "variant": "dla"}
    rows = [
        {**same, "seed": seed, "right": {"2": share, "16": 0.25}, "boundary_rate": {"0": 0.5, "1": share}}
        for seed, share in enumerate([0.5, 0.75, 1.0])
    ]
    text = to_markdown(rows)
    assert "| memory | seeds | 2 pairs | 16 pairs | boundary rate by layer |" in text
    assert "| dla | 3 | 75.0% (50% to 100%) | 25.0% (25% to 25%) | 50%, 75% |" in text
