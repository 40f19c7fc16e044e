"""`dla-train eval` with built-in tasks, as a user types it."""

import json

import pytest
from PIL import Image

from dla_train.evaluation.built_in import needles


@pytest.mark.usefixtures("run_folder")
def test_tables_figures_and_pictures(cli, tmp_path, monkeypatch, hide_lm_eval):
    monkeypatch.setattr(needles, "SUITE", {"single 1": "niah_single_1", "single 2": "niah_single_2"})
    hide_lm_eval()
    names = ["perplexity-by-position", "needles"]
    asked = ["eval", "--checkpoint", "run", "--tasks", ",".join(names), "--limit", 1, "--lengths", "1K,600"]
    (tmp_path / "long.txt").write_text("alpha beta gamma delta. " * 1000)
    asked += ["--text", "long.txt"]
    done = cli(*asked, "--out", "made/out")
    assert done.code == 0, done.err
    assert "perplexity-by-position: 1 of 1 window of 1,024 tokens" in done.err
    assert "needles, 2 of 4: single 2 at 600 tokens, " in done.err
    assert done.out.startswith("run, step 4\n\n### perplexity-by-position\n")
    assert "| task | 600 | 1K |" in done.out
    results = json.loads((tmp_path / "made/out/results.json").read_text())
    assert (results["step"], results["limit"], results["seed"], results["scores"]) == (4, 1, 0, [])
    assert list(results["built_in"]) == names
    assert len(results["built_in"]["needles"]["cells"]) == 4
    page = (tmp_path / "made/out/results.md").read_text()
    for name in names:
        assert f"![{name}]({name}.png)" in page
        with Image.open(tmp_path / f"made/out/{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, "something is drawn"
    again = cli(*asked, "--out", "again")
    assert again.out == done.out
    assert (tmp_path / "again/results.json").read_text() == (tmp_path / "made/out/results.json").read_text()


@pytest.mark.usefixtures("run_folder")
def test_what_is_wrong_is_named(cli, tmp_path, hide_lm_eval):
    checkpoint = ["--checkpoint", "run"]
    position = [*checkpoint, "--tasks", "perplexity-by-position"]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/needles.png").touch()
    (tmp_path / "full/perplexity-by-position.png").touch()
    for arguments, message in [
        ([*position, "--lengths", "4K,x"], "--lengths holds 'x'; it must be numbers of tokens"),
        ([*position, "--lengths", "0"], "--lengths holds '0'"),
        ([*position, "--lengths", "1K,64000K"], "--lengths holds '64000K'; it must be at most 16,777,216 tokens"),
        ([*position, "--seed", -1], "--seed is -1; it must be at least 0"),
        ([*position, "--text", "none.txt"], "cannot read the text none.txt"),
        ([*position, "--text", "latin.txt"], "latin.txt is not UTF-8"),
        ([*position, "--out", "latin.txt"], "--out latin.txt cannot be made: File exists"),
        ([*position, "--out", "full"], "--out full holds earlier results (perplexity-by-position.png), which would be"),
        ([*checkpoint, "--tasks", "mqar"], "mqar is for models that were trained on it"),
        ([*checkpoint, "--tasks", "piqa", "--lengths", "1K"], "--lengths is for the built-in tasks"),
        ([*checkpoint, "--tasks", "needels.yaml,perplexity-by-position"], "there is no task file needels.yaml"),
    ]:
        done = cli("eval", *arguments)
        assert done.code == 2, arguments
        assert message in done.err
        assert done.out == ""
    hide_lm_eval()
    for name, guess in [("needels", "needles"), ("change_point", "change-point"), ("paper-ruller", "paper-ruler")]:
        done = cli("eval", *checkpoint, "--tasks", name)
        assert done.code == 2
        assert f"there is no built-in task '{name}'. Did you mean {guess}?" in done.err


def test_the_list_of_tasks_needs_no_run(cli):
    done = cli("eval", "--tasks", "list")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[:4]] == [
        "perplexity-by-position",
        "needles",
        "mqar",
        "change-point",
    ]
    assert "paper-longbench" in done.out
