"""A run that streams a data set of the hub goes on with the commit that it began with, or says why it does not."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest

from dla_data.tokenizer import save_tokenizer, train_tokenizer
from dla_train.checkpoints.manifest import Manifest
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.training.start import _open_data
from tests.data.local_hub import LocalHub, served

STREAMING = """\
data:
  kind: streaming
  tokenizer: TOKENIZER
  vocab_size: 300
  window: 24
  streams: 2
  held_out: 0.3
  sources:
    tale: {path: owner/set}
"""
REVISION = "revision of data.sources.tale"


def _files(seed, count=80):
    texts = [f"{seed} {number}: " + "alpha beta gamma delta " * (number % 5 + 1) for number in range(count)]
    rows = [json.dumps({"text": text}) + "\n" for text in texts]
    return {"data/0.jsonl": "".join(rows[::2]), "data/1.jsonl": "".join(rows[1::2])}


@pytest.fixture
def hub(tmp_path):
    with served(hub := LocalHub(), tmp_path / "hugging face"):
        yield hub


@pytest.fixture
def recipe(micro_recipe, tmp_path):
    texts = [json.loads(line)["text"] for part in _files(0).values() for line in part.splitlines()]
    save_tokenizer(train_tokenizer(texts, 280), tmp_path / "own.json")
    section = STREAMING.replace("TOKENIZER", str(tmp_path / "own.json"))
    path = tmp_path / "streamed.yaml"
    path.write_text(re.sub(r"^data: .*\n", section, micro_recipe.read_text(), flags=re.MULTILINE))
    return path


@pytest.fixture
def fit(cli, recipe):
    def run(folder, steps, *more):
        settings = ["report.prompt=null", "training.threads=1", f"training.steps={steps}", "checkpoint.every=4"]
        return cli("fit", "--recipe", recipe, "--run-dir", folder, *settings, *more)

    return run


def _losses(folder):
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    wanted = [rows[0].index(name) for name in ("split", "step", "loss")]
    return [[row[column] for column in wanted] for row in rows if row[0] != "split"]


def _manifest(folder, step):
    return Manifest.read(folder / "checkpoints" / f"step-{step:08}")


def test_a_run_goes_on_with_the_commit_that_it_began_with(hub, fit, tmp_path):
    first = hub.commit("owner/set", _files("first"), "main", "v1")
    assert fit("straight", 8).code == 0
    for name in ("pieces", "moved", "other"):
        shutil.copytree(tmp_path / "straight", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step-00000008")
    second = hub.commit("owner/set", _files("secnd"), "main", "v2")  # as many bytes in as many files
    done = fit("pieces", 8, "--resume", "auto")
    assert done.code == 0, done.err
    assert f"data.sources.tale: owner/set, commit {first}, as at the start" in done.err
    assert "HTTP Request" not in done.err
    assert _losses(tmp_path / "pieces") == _losses(tmp_path / "straight")
    assert {_manifest(tmp_path / "pieces", step).identity.data[REVISION] for step in (4, 8)} == {first}

    # Written in another way, the same commit is the same text and another one is refused.
    done = fit("moved", 8, "--resume", "auto", "data.sources.tale.path=hf:owner/set@v1")
    assert done.code == 0, done.err
    assert _losses(tmp_path / "moved") == _losses(tmp_path / "straight")
    done = fit("other", 8, "--resume", "auto", "data.sources.tale.path=owner/set@v2")
    assert done.code == 2
    said = f"the {REVISION} changed since .*step-00000004 was written .{first} there, {second} here.*Write @{first}"
    assert re.search(said, done.err.replace("\n", " ")), done.err

    # A run that branches off goes on with the text; with another revision, it begins anew.
    done = fit("same", 8, "--resume", "other")
    assert done.code == 0, done.err
    assert _losses(tmp_path / "same")[-1] == _losses(tmp_path / "straight")[-1]
    done = fit("new", 8, "--resume", "other", "data.sources.tale.path=owner/set@v2")
    assert done.code == 0, done.err
    assert "every stream begins with its first document" in done.err
    assert _manifest(tmp_path / "new", 8).identity.data[REVISION] == second


def test_the_text_is_evaluated_at_the_commit_that_was_trained_on(hub, fit, cli, tmp_path):
    hub.commit("owner/set", _files("first"))
    assert fit("run", 4).code == 0
    asked = ["eval", "--checkpoint", "run", "--tasks", "perplexity-by-position", "--lengths", "24", "--out"]
    assert cli(*asked, "before").code == 0
    hub.commit("owner/set", _files("secnd"))
    done = cli(*asked, "after")
    assert done.code == 0, done.err
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("before", "after")]
    assert results[0] == results[1]


def test_a_checkpoint_without_a_revision_is_gone_on_from_with_a_warning(hub, fit, tmp_path):
    commit = hub.commit("owner/set", _files("first"))
    assert fit("run", 4).code == 0
    path = tmp_path / "run" / "checkpoints" / "step-00000004" / "manifest.json"
    content = json.loads(path.read_text())
    for part in [part for part in content["identity"]["data"] if part.startswith(("revision", "files"))]:
        del content["identity"]["data"][part]
    del content["checksum"]
    path.write_text(json.dumps(content))
    done = fit("run", 6, "--resume", "auto")
    assert done.code == 0, done.err
    assert f"does not say which commit of data.sources.tale was read: going on with {commit}" in done.err
    assert _manifest(tmp_path / "run", 6).identity.data[REVISION] == commit
    shutil.rmtree(path.parent.with_name("step-00000006"))
    done = fit("branch", 6, "--resume", "run")
    assert done.code == 0, done.err
    assert "every stream" not in done.err


def test_a_changed_folder_that_is_read_as_a_data_set_is_refused(fit, tmp_path):
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name, content in _files("first").items():
        (folder / name).write_text(content)
    path = f"data.sources.tale.path=hf:{folder}"
    assert fit("run", 4, path).code == 0
    assert fit("run", 5, path, "--resume", "auto").code == 0
    for name, content in _files("another").items():
        (folder / name).write_text(content)
    done = fit("run", 6, path, "--resume", "auto")
    assert done.code == 2
    assert "the files of data.sources.tale changed since" in done.err


def test_all_ranks_read_the_commit_that_the_first_one_found(hub, recipe):
    first = hub.commit("owner/set", _files("first"))
    loaded = load(find(str(recipe)))
    known = {}

    def work_first(work):
        known.update(work())
        return known

    rank_0 = SimpleNamespace(is_first=True, first=work_first, require_equal=lambda value, what: None)
    rank_1 = SimpleNamespace(is_first=False, first=lambda work: known, require_equal=lambda value, what: None)
    data = [_open_data(loaded, rank_0)]
    hub.commit("owner/set", _files("second"))
    data.append(_open_data(loaded, rank_1))
    assert [each.fingerprints[REVISION] for each in data] == [first, first]
