"""`dla-train eval` as a user types it, on a run of this process and rows of this folder."""

import json

import pytest

TASK = """\
task: words
dataset_path: json
dataset_kwargs: {data_files: {validation: words.jsonl}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROWS = [{"question": f"alpha {word}", "choices": ["beta", "zzz qqq"], "label": 0} for word in ("beta", "slot", "state")]


@pytest.fixture
def run_folder(run_folder, tmp_path):
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "words.yaml").write_text(TASK)


@pytest.mark.usefixtures("run_folder")
def test_scores_of_a_file_of_ones_own(cli, tmp_path):
    done = cli("eval", "--checkpoint", "run", "--tasks", "words.yaml", "--limit", 2, "--out", "made/out")
    assert done.code == 0, done.err
    assert done.out.startswith("run, step 4\n")
    assert "1 of 1: words, acc " in done.err
    results = json.loads((tmp_path / "made/out/results.json").read_text())
    assert (results["step"], results["limit"]) == (4, 2)
    [score] = results["scores"]
    assert (score["task"], score["metric"], score["examples"]) == ("words", "acc", 2)
    assert f"| words | acc | {score['value']:.4g} | " in done.out
    assert (tmp_path / "made/out/results.md").read_text() == done.out


@pytest.mark.usefixtures("run_folder")
def test_one_list_holds_both_kinds_of_tasks(cli, tmp_path):
    names = "perplexity-by-position,words.yaml,perplexity-by-position"
    done = cli("eval", "--checkpoint", "run", "--tasks", names, "--limit", 2, "--out", "out")
    assert done.code == 0, done.err
    heads = [line for line in done.out.splitlines() if line.startswith("### ")]
    assert heads == ["### perplexity-by-position", "### words.yaml"], "each once, in the order of the list"
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [score["task"] for score in results["scores"]] == ["words"]
    assert results["built_in"]["perplexity-by-position"]["windows"] == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "perplexity-by-position.png",
        "results.json",
        "results.md",
    }


@pytest.mark.usefixtures("run_folder")
def test_what_is_wrong_is_named(cli, tmp_path, hide_lm_eval):
    (tmp_path / "file").touch()
    (tmp_path / "empty.yaml").write_text(TASK.replace("words.jsonl", "none.jsonl"))
    checkpoint = ["--checkpoint", "run"]
    words = ["--tasks", "words.yaml"]
    for arguments, message in [
        (words, "needs --checkpoint RUN"),
        (checkpoint, "needs --tasks NAME[,NAME...] (for example needles"),
        ([*checkpoint, *words, "--limit", 0], "--limit is 0; it must be at least 1"),
        ([*checkpoint, *words, "--out", "file"], "--out file cannot be made: File exists"),
        ([*checkpoint, *words, "model.layers=2"], "takes no key=value (given model.layers=2)"),
        ([*checkpoint, "--tasks", "none.yaml"], "there is no task file none.yaml"),
        ([*checkpoint, "--tasks", "empty.yaml"], "the data set of task empty.yaml cannot be read"),
        (["--checkpoint", "runs", *words], "there is no folder runs"),
    ]:
        done = cli("eval", *arguments)
        assert done.code == 2, arguments
        assert message in done.err
        assert done.out == ""
    hide_lm_eval()
    done = cli("eval", *checkpoint, *words)
    assert done.code == 2
    assert "pip install 'dla-train[eval]'" in done.err


def test_a_softmax_model_says_what_it_can_see(cli, micro_recipe, run_folder):
    mixer = "model.mixer={kind: attention, heads: 2}"
    done = cli(
        "fit", "--recipe", micro_recipe, "--run-dir", "soft", "training.steps=4", "training.validate_every=null", mixer
    )
    assert done.code == 0, done.err
    done = cli("eval", "--checkpoint", "soft", "--tasks", "words.yaml")
    assert done.code == 0, done.err
    assert "contexts are their last 24 tokens" in done.err
