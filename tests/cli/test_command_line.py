import os
import re
import shlex
import subprocess
import sys
from importlib import metadata

import pytest

from dla_train.cli.main import _parser, _settings


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["show", "--help"], ["recipes", "--help"]])
def test_help_has_the_usage(cli, arguments):
    done = cli(*arguments)
    assert done.code == 0
    assert done.out.startswith("usage: dla-train")
    assert done.err == ""


def test_help_has_examples_that_parse(cli):
    text = cli("--help").out + cli("fit", "--help").out
    examples = re.findall(r"^  dla-train (show [^#\n]*?|recipes)(?: {2,}.*)?$", text, re.MULTILINE)
    assert examples
    for example in examples:
        assert cli(*example.split()).code == 0


@pytest.mark.parametrize(
    "command", ["", "fit", "prepare", "estimate", "generate", "eval", "inspect", "export", "submit"]
)
def test_every_example_of_a_help_is_understood(cli, micro_recipe, tmp_path, command):
    examples = re.findall(r"^  dla-train (.*?)(?: {2,}.*)?$", cli(*command.split(), "--help").out, re.MULTILINE)
    assert examples
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(micro_recipe.read_text().replace("accelerator: cpu", "accelerator: auto"))
    for example in examples:
        words = shlex.split(re.sub(r" [<>] \S+$", "", example))
        options, rest = _parser().parse_known_args(words)
        assert options.command == words[0]
        assert all(re.fullmatch(r"[\w.]+=.+", setting) for setting in _settings(rest, words[0], known=()))
        if command == "submit":
            if "--resume" in words:  # needs something to branch off from
                assert cli("fit", "--recipe", micro_recipe, "training.steps=4", "--run-dir", "runs/a").code == 0
            done = cli(*words, "--dry-run")
            assert done.code == 0, done.err


def test_version(cli):
    assert cli("--version").out == f"dla-train {metadata.version('dla-train')}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "there is no command 'trian'."),
        (["list"], "there is no command 'list'. Did you mean recipes?"),
        (["recipe"], "there is no command 'recipe'. Did you mean recipes?"),
        (["fit"], "dla-train fit needs --recipe NAME_OR_PATH"),
        (["fit", "--recipe"], "argument --recipe: expected one argument."),
        (["show"], "the following arguments are required: NAME_OR_PATH."),
        (
            ["fit", "--recipe", "tiny", "--training.steps", "5"],
            "To set a key of the recipe, write training.steps=VALUE.",
        ),
        (["fit", "--recipe", "tiny", "--lr=3"], "--lr=3. To set a key of the recipe, write optimizer.lr=VALUE."),
        (["fit", "--recipe", "tiny", "--foo"], "no option --foo. `dla-train fit --help`"),
        (
            ["fit", "--recipe", "tiny", "--recipe", "mqar"],
            "given twice. Give one; `dla-train submit` takes several.",
        ),
        (["fit", "--recipe", "tiny", "--run-dir="], "the name of the folder is empty; `.` is the current one."),
        (["fit", "--recipe", "/"], "/ is a folder; a recipe is a .yaml file."),
        (["train"], "there is no command 'train'. Did you mean fit?"),
        (["fit", "--recipe", "tiny", "--set", "seed=1"], "has no option --set. To set a key of the recipe, write key="),
        (["fit", "--recipes=tiny"], "dla-train fit has no option --recipes=tiny. Did you mean --recipe?"),
        (["fit", "--config", "mine.yaml"], "dla-train fit has no option --config. Did you mean --recipe?"),
        (["fit", "--job.config_file=mine.yaml"], "Did you mean --recipe?"),
        (["fit", "--recipe", "tiny", "--out_dir=x"], "Did you mean --run-dir?"),
        (["estimate", "tiny"], "dla-train estimate needs --recipe NAME_OR_PATH. Did you mean --recipe tiny?"),
        (["preflight", "seed=1", "tiny"], "Did you mean --recipe tiny?"),
        (["submit", "my recipe.yaml"], "Did you mean --recipe 'my recipe.yaml'?"),
        (["fit", "--recipe", "tiny", "fast"], "'fast' is not a setting: write key=value"),
        (["recipes", "tiny"], "dla-train recipes takes no settings, given tiny."),
        (["fit", "--run-dir", "nowhere", "--resume", "auto"], "nowhere holds no run to take the recipe from"),
    ],
)
def test_wrong_usage_is_one_sentence(cli, arguments, expected):
    done = cli(*arguments)
    assert done.code == 2
    assert expected in done.err
    assert done.err.startswith("dla-train: error: ")
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_without_a_command_it_says_what_there_is(cli):
    done = cli()
    assert done.code == 2
    assert "recipes" in done.out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["recipes"], ["show", "tiny"], ["keys"], ["fit", "--recipe", "tiny", "steps=1"]]
)
def test_what_trains_nothing_does_not_wait_for_torch(arguments):
    script = (
        "import sys; from dla_train.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'lightning', 'matplotlib', 'datasets', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["argparse", "dla_train.cli.device", "yaml", "omegaconf"])
@pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "Dropped()"])
def test_ctrl_c_while_a_command_is_imported_is_one_word(module, how):
    """At the moment when `module` is imported; the command is the one that is installed."""
    (entry,) = metadata.entry_points(group="console_scripts", name="dla-train")
    script = (
        "import builtins, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # in the background a shell has it ignored
        "class Dropped:\n"
        "    def __del__(self): raise KeyboardInterrupt\n"
        "real = builtins.__import__\n"
        "def interrupted(name, *how):\n"
        f"    if name == {module!r}: {how}\n"
        "    return real(name, *how)\n"
        "builtins.__import__ = interrupted\n"
        f"from {entry.module} import {entry.attr}\n"
        f"sys.exit({entry.attr}())"
    )
    done = subprocess.run([sys.executable, "-c", script, "show", "tiny"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (130, "\ndla-train: interrupted\n", "")


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m dla_train show tiny | head -n 1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("description: ")
    assert done.stderr == ""


def _in_a_shell(command, **environment):
    return subprocess.run(
        command.replace("dla-train", f"{sys.executable} -m dla_train"),
        shell=True,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_output_that_takes_another_encoding_is_no_error():
    done = _in_a_shell("dla-train show tiny description='é ▸'", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"description: \xe9 \\u25b8\n")


def test_an_argument_is_utf_8_in_every_locale():
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}
    done = _in_a_shell("dla-train show tiny description=▸", **plain)
    assert done.stdout.startswith("description: ▸\n".encode()), done.stderr
    done = _in_a_shell("dla-train show tiny description=$(printf '\\377')")
    assert done.returncode == 2
    assert rb"the argument 'description=\xff' is not UTF-8" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_is_named():
    done = _in_a_shell("dla-train show tiny > /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"dla-train: error: cannot write the output: No space left on device. Make room there.\n"


def test_a_fault_of_ours_is_owned_up_to(cli, monkeypatch):
    from dla_train.config import catalog

    monkeypatch.setattr(catalog, "shipped", lambda: 1 / 0)
    done = cli("recipes")
    assert done.code == 1
    assert done.err.startswith("dla-train: unexpected ZeroDivisionError: division by zero\n")
    assert "--debug shows where" in done.err
    with pytest.raises(ZeroDivisionError):
        cli("recipes", "--debug")


def test_an_output_that_was_closed_beforehand_is_done_without(tmp_path):
    command = [sys.executable, "-m", "dla_train", "show", "tiny"]
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert bool(done.stdout) == (closed == "2>&-")
        assert not done.stderr


def test_a_current_folder_that_was_removed_is_named(cli, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = cli("show", "tiny")
    assert done.code == 2
    assert "the current folder was removed. Change to one that is there, with cd." in done.err
