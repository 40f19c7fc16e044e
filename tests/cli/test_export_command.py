"""`dla-train export` as a user types it, on a run of this process."""

import json
import subprocess
import sys

import pytest
import torch

from dla_train import load_model


@pytest.mark.usefixtures("run_folder")
def test_the_folder_is_the_checkpoint(cli, tmp_path, monkeypatch):
    done = cli("export", "--checkpoint", "run", "--to", "out/model")
    assert done.code == 0, done.err
    assert done.out.startswith("run/checkpoints/step-00000004 is in out/model: 0.")
    assert "step 4." in done.out
    state = torch.load(tmp_path / "run/checkpoints/step-00000004/state.ckpt", weights_only=True)["state_dict"]
    for source in ("run", "out/model"):
        weights = load_model(source).state_dict()
        assert all(torch.equal(state[f"model.{name}"], value) for name, value in weights.items())
        assert len(weights) == sum(name.startswith("model.") for name in state)
    made = tmp_path / "out/model"
    assert (made / "tokenizer.json").read_bytes() == (tmp_path / "run/tokenizer.json").read_bytes()
    assert (made / "recipe.yaml").read_text() == (tmp_path / "run/recipe.yaml").read_text()
    assert "trained with dla-train for 4 steps" in (made / "README.md").read_text()

    done = cli("export", "--checkpoint", "run", "--to", "out/model")
    assert done.code == 2
    assert "out/model is not empty. Give --to a new folder" in done.err
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path / "bare")
    for here in (".", tmp_path / "bare"):
        done = cli("export", "--checkpoint", "../run", "--to", here)
        assert done.code == 2
        assert f"{here} is no new folder. Give --to the name of one, such as " in done.err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/tokenizer.json").unlink()
    done = cli("export", "--checkpoint", "run", "--to", "bare")
    assert done.code == 0, "into an empty folder, of a model whose tokens are no text"
    assert "It has no tokenizer" in done.out
    assert not (tmp_path / "bare/tokenizer_config.json").exists()


@pytest.mark.usefixtures("run_folder")
def test_an_exported_folder_is_no_run(cli, micro_recipe, tmp_path):
    assert cli("export", "--checkpoint", "run", "--to", "out").code == 0
    before = sorted((tmp_path / "out").iterdir())
    for arguments, message in [
        (["export", "--checkpoint", "out", "--to", "again"], "out is an exported model, not a run. Give the run"),
        (["fit", "--run-dir", "out", "--resume", "auto"], "out holds no run to take the recipe from"),
        (
            ["fit", "--recipe", micro_recipe, "--run-dir", "out", "--resume", "auto"],
            "out is not empty and holds no run",
        ),
    ]:
        done = cli(*arguments)
        assert done.code == 2, done.err
        assert message in done.err
        assert sorted((tmp_path / "out").iterdir()) == before


@pytest.mark.usefixtures("run_folder")
def test_an_exported_model_needs_no_run(cli, tmp_path):
    """It generates, is asked and is looked at as the run that it was made of."""
    assert cli("export", "--checkpoint", "run", "--to", "out").code == 0
    (tmp_path / "text.txt").write_text("alpha beta gamma alpha beta gamma alpha beta " * 40)
    commands = {
        "generate": ["--prompt", "alpha", "--max-tokens", "5"],
        "eval": ["--tasks", "perplexity-by-position", "--text", "text.txt", "--lengths", "32", "--limit", "2"],
        "inspect": ["--text", "text.txt", "--out"],
    }
    of_run = {
        name: cli(name, "--checkpoint", "run", *rest, *["a"][: name == "inspect"]) for name, rest in commands.items()
    }
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    for name, rest in commands.items():
        done = cli(name, "--checkpoint", "out", *rest, *["b"][: name == "inspect"])
        assert done.code == of_run[name].code == 0, done.err
        if name != "inspect":
            assert done.out == of_run[name].out.replace("run, step 4", "out, step 4")
    assert (tmp_path / "a/life.png").read_bytes() == (tmp_path / "b/life.png").read_bytes()

    (tmp_path / "out/recipe.yaml").unlink()
    done = cli("generate", "--checkpoint", "out", "--prompt", "alpha")
    assert done.code == 2
    assert "out is a model without the recipe that it was trained with" in done.err


@pytest.mark.usefixtures("run_folder")
def test_an_export_of_an_older_version_does_not_say_its_step(cli, tmp_path):
    assert cli("export", "--checkpoint", "run", "--to", "out").code == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config.pop("trained_steps") == 4
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    (tmp_path / "text.txt").write_text("alpha beta gamma " * 99)
    done = cli("eval", "--checkpoint", "out", "--tasks", "perplexity-by-position", "--text", "text.txt", "--limit", "1")
    assert done.code == 0, done.err
    assert done.out.startswith("out\n\n### perplexity-by-position")


@pytest.mark.usefixtures("run_folder")
def test_what_is_missing_or_damaged_is_named(cli, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, message in [
        (["--to", "out"], "needs --checkpoint RUN"),
        (["--checkpoint", "run"], "needs --to DIR"),
        (["--checkpoint", "runs", "--to", "out"], "there is no folder runs"),
        (["--checkpoint", "run", "--to", "file"], "file is a file. Give --to a new folder"),
        (["--checkpoint", "run", "--to", "file/out"], "cannot write file/out: not a directory"),
        (["--checkpoint", "run", "--to", "out", "model.hidden=4"], "takes no key=value (given model.hidden=4)"),
    ]:
        done = cli("export", *arguments)
        assert done.code == 2, done.err
        assert message in done.err
        assert not (tmp_path / "out").exists()
    newest = tmp_path / "run/checkpoints/step-00000004"
    state = bytearray((newest / "state.ckpt").read_bytes())
    state[len(state) // 2] ^= 1
    (newest / "state.ckpt").write_bytes(state)
    done = cli("export", "--checkpoint", newest, "--to", "out")
    assert done.code == 1
    assert "is damaged" in done.err
    assert not (tmp_path / "out").exists()


def test_the_package_imports_without_torch():
    script = "import sys, dla_train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
