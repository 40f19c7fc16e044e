"""`logging.wandb`: W&B has the rows of `metrics.csv`, each once and in order, whatever happens to the run or to W&B."""

import json
import os
import shutil
import signal
import struct
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.config.typed import plain
from dla_train.runs.metrics_file import read_rows
from tests.training.wandb_server import WandbServer

SHORT = ("training.steps=6", "report.prompt=null", "report.bigram=false", "logging.wandb.project=recall")
KEY = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.xdist_group("wandb")
needs_wandb = pytest.mark.skipif(not any(metadata.packages_distributions().get("wandb", ())), reason="needs wandb")


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it keeps the variables of its first start for the whole process


@pytest.fixture
def server(monkeypatch):
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


def expected(folder):
    """What W&B should have of a run."""
    return [
        {
            **{f"{row['split']}/{name}": value for name, value in row.items() if name not in ("step", "split")},
            "step": row["step"],
        }
        for row in read_rows(folder / "metrics.csv")
    ]


def rows_of(history):
    return [{name: value for name, value in row.items() if name[0] != "_"} for row in history]


def records(path):
    """What W&B's own file of an offline run holds (blocks of 32 KB with records, as LevelDB's log has them)."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def offline_starts(folder):
    """(rows, what was said of the run) of each start, in order (names of W&B's folders tell only the second)."""
    starts = []
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        found = list(records(path))
        rows = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in found
            if record.HasField("history")
        ]
        starts.append((rows_of(rows), next(record.run for record in found if record.HasField("run"))))
    return sorted(starts, key=lambda start: start[1].start_time.ToNanoseconds())


def test_without_the_package_a_run_is_refused_before_anything_is_made(cli, micro_recipe, monkeypatch):
    version = metadata.version

    def without(name):
        if name == "wandb":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    done = cli("fit", "--recipe", micro_recipe, *SHORT)
    assert done.code == 2
    assert "the package wandb is not installed. Install it with pip install 'dla-train[wandb]', or set" in done.err
    assert not Path("runs").exists()
    # and not on a cluster, hours later
    submitted = cli("submit", "--dry-run", "--recipe", micro_recipe, "--gpus-per-node", 0, *SHORT)
    assert (submitted.code, submitted.err) == (2, done.err)
    assert cli("fit", "--recipe", micro_recipe, *SHORT, "logging.wandb=null").code == 0


@needs_wandb
def test_offline_the_run_is_there_with_its_recipe_and_goes_on_under_its_id(cli, micro_recipe, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    fit = ("fit", "--recipe", micro_recipe, *SHORT, "logging.wandb.tags=[a, b]", "logging.wandb.group=g")
    done = cli(*fit)
    assert done.code == 0, done.err
    assert "W&B: offline, in runs/micro/wandb/offline-run-" in done.err
    folder = Path("runs/micro")
    ((rows, said),) = offline_starts(folder)
    assert rows == expected(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 5, 6, 6]
    assert (said.project, said.display_name, said.run_group, list(said.tags)) == ("recall", "micro", "g", ["a", "b"])
    config = {item.key: json.loads(item.value_json) for item in said.config.update}
    assert plain(load(find(str(micro_recipe)), fit[3:]).recipe) == {
        name: value for name, value in config.items() if name != "_wandb"
    }

    # The checkpoint of step 6 is lost: steps 5 and 6 are trained again, and are in W&B already.
    (folder / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    for steps in (6, 7):
        done = cli(*fit, f"training.steps={steps}", "--resume", "auto")
        assert done.code == 0, done.err
    starts = offline_starts(folder)
    assert [[row["step"] for row in rows] for rows, _ in starts[1:]] == [[], [7, 7]]
    assert {again.run_id for _, again in starts} == {said.run_id}


@needs_wandb
def test_each_row_is_there_once_whatever_was_lost_on_the_way(server, cli, micro_recipe):
    fit = ("fit", "--recipe", micro_recipe, *SHORT)
    assert cli(*fit).code == 0
    folder = Path("runs/micro")
    ((name, run),) = server.runs.items()
    assert rows_of(run["rows"]) == expected(folder)
    del run["rows"][3:]  # had not come there yet when a node was lost
    (folder / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    done = cli(*fit, "--resume", "auto")
    assert done.code == 0, done.err
    assert "going on from step 4" in done.err
    assert f"W&B: {server.address}/ada/project/runs/{name}" in done.err
    assert cli(*fit, "training.steps=7", "--resume", "auto").code == 0
    assert list(server.runs) == [name], "no other run"
    assert [row["step"] for row in run["rows"]] == [1, 2, 3, 4, 5, 5, 6, 6, 7, 7]
    assert [row["_step"] for row in run["rows"]] == list(range(10)), "as W&B counts them"
    assert rows_of(run["rows"]) == expected(folder)
    assert run["exitcode"] == 0


@needs_wandb
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_no_step_is_missing_after_going_back_with_other_validations(server, cli, micro_recipe, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    fit = ("fit", "--recipe", micro_recipe, *SHORT)
    assert cli(*fit, "training.validate_every=1").code == 0
    folder = Path("runs/micro")
    (folder / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    for steps in (8, 9):
        done = cli(*fit, "--resume", "auto", "training.validate_every=null", f"training.steps={steps}")
        assert done.code == 0, done.err
    if mode == "online":
        (run,) = server.runs.values()
        steps = [row["step"] for row in run["rows"]]
    else:
        steps = [row["step"] for rows, _ in offline_starts(folder) for row in rows]
    assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9]


@needs_wandb
@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("given", [None, "i1"])
def test_a_second_branch_from_an_earlier_step_has_all_of_its_rows(server, cli, micro_recipe, monkeypatch, mode, given):
    fit = (
        "fit",
        "--recipe",
        micro_recipe,
        *SHORT,
        "checkpoint={every: 2, keep_last: 3}",
        "training.validate_every=null",
    )
    assert cli(*fit, "logging.wandb=null").code == 0
    monkeypatch.setenv("WANDB_MODE", mode)
    if given:
        monkeypatch.setenv("WANDB_RUN_ID", given)
    branch = Path("branch")
    for step, told in ((4, 0), (2, 1), (2, 0)):
        begins = f"runs/micro/checkpoints/step-0000000{step}"
        done = cli(*fit, "--run-dir", branch, "--resume", f"auto:{begins}")
        assert done.code == 0, done.err
        assert done.err.count("W&B has an earlier attempt, which began elsewhere") == told
        shutil.rmtree(branch / "checkpoints")  # as if it had been killed before its first
        (branch / "report.md").unlink()
    if mode == "online":
        runs = [rows_of(run["rows"]) for run in server.runs.values()]
    else:
        starts = offline_starts(branch)
        ids = dict.fromkeys(said.run_id for _, said in starts)
        runs = [[row for rows, said in starts if said.run_id == name for row in rows] for name in ids]
    steps = [[row["step"] for row in rows] for rows in runs]
    first, second = [5, 6, 6], [3, 4, 5, 6, 6]
    assert steps == ([[*first, *second]] if given else [first, second])
    losses = [[row.get("train/loss") for row in rows] for rows in (runs[-1][-len(second) :], expected(branch))]
    assert losses[0] == losses[1]


@needs_wandb
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_in_the_same_run(server, cli, start_process, micro_recipe):
    fit = ["fit", "--recipe", micro_recipe, *SHORT, "training.steps=5000", "logging.memory_every=100"]
    process = start_process("-m", "dla_train", *fit)
    deadline = time.monotonic() + 120
    while not any(run["rows"] for run in server.runs.values()):  # every 15 s
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service = psutil.Process(process.pid).children()
    for one in [process, *service]:  # as the loss of a node does
        os.kill(one.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(service, timeout=10)
    folder = Path("runs/micro")
    ((name, run),) = server.runs.items()
    steps = read_rows(folder / "metrics.csv")[-1]["step"] + 2
    done = cli(*fit, f"training.steps={steps}", "--resume", "auto")
    assert done.code == 0, done.err
    assert list(server.runs) == [name], "no other run"
    assert [row["step"] for row in run["rows"]] == [row["step"] for row in read_rows(folder / "metrics.csv")]


@needs_wandb
def test_what_an_earlier_start_could_not_send_is_sent_by_the_next(server, cli, micro_recipe, monkeypatch):
    with monkeypatch.context() as away:
        away.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody answers
        away.setenv("WANDB_INIT_TIMEOUT", "2")
        done = cli("fit", "--recipe", micro_recipe, *SHORT)
    assert done.code == 0, done.err
    assert "warning: W&B does not answer (" in done.err
    folder = Path("runs/micro")
    ((rows, _),) = offline_starts(folder)
    assert rows == expected(folder)
    assert not server.runs

    assert cli("fit", "--recipe", micro_recipe, *SHORT, "--resume", "auto").code == 0, "which trains nothing more"
    (run,) = server.runs.values()
    assert rows_of(run["rows"]) == expected(folder)


@needs_wandb
def test_without_a_login_the_run_is_kept_offline_and_nobody_is_asked(cli, micro_recipe):
    done = cli("fit", "--recipe", micro_recipe, *SHORT)
    assert done.code == 0, done.err
    assert "warning: W&B does not answer (No API key configured" in done.err
    ((rows, _),) = offline_starts(Path("runs/micro"))
    assert len(rows) == 8


def at_step_3(monkeypatch, act):
    from dla_train.training.module import LanguageModelTraining

    step = LanguageModelTraining.training_step

    def acting(self, batch, batch_idx):
        if self.trainer.global_step == 2 and batch_idx % 2 == 0:
            act()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModelTraining, "training_step", acting)


def service():
    (process,) = [child for child in psutil.Process().children() if "wandb" in child.name()]
    return process


@needs_wandb
def test_a_service_that_dies_does_not_end_the_run(cli, micro_recipe, monkeypatch):
    def kill():
        process = service()
        process.kill()
        process.wait(10)

    monkeypatch.setenv("WANDB_MODE", "offline")
    at_step_3(monkeypatch, kill)
    done = cli("fit", "--recipe", micro_recipe, *SHORT)
    assert done.code == 0, done.err
    assert done.err.count("warning: W&B failed (") == 1
    assert len(read_rows(Path("runs/micro/metrics.csv"))) == 8
    assert cli("fit", "--recipe", micro_recipe, *SHORT, "training.steps=7", "--resume", "auto").code == 0


@needs_wandb
def test_a_server_that_goes_away_does_not_hold_up_the_end(cli, micro_recipe, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        at_step_3(monkeypatch, server.close)
        done = cli("fit", "--recipe", micro_recipe, *SHORT)
    assert done.code == 0, done.err
    assert len(read_rows(Path("runs/micro/metrics.csv"))) == 8
    (run,) = server.runs.values()
    assert run["rows"] == []
    assert "warning: W&B may lack the last steps (" in done.err


@needs_wandb
def test_a_run_that_is_stopped_is_marked_so(server, cli, micro_recipe, monkeypatch):
    def tell_all():  # as Slurm does
        service().send_signal(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)

    at_step_3(monkeypatch, tell_all)
    assert cli("fit", "--recipe", micro_recipe, *SHORT).code == 138
    (run,) = server.runs.values()
    assert run["exitcode"] == 255
    assert [row["step"] for row in run["rows"]] == [1, 2, 3]


@needs_wandb
def test_w_and_b_s_own_variables_count(cli, micro_recipe, monkeypatch):
    for name, value in {"MODE": "offline", "PROJECT": "mine", "NAME": "n", "RUN_GROUP": "g", "RUN_ID": "i1"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    done = cli("fit", "--recipe", micro_recipe, *SHORT[:-1], "logging.wandb={}")
    assert done.code == 0, done.err
    ((_, said),) = offline_starts(Path("runs/micro"))
    assert (said.project, said.display_name, said.run_group, said.run_id) == ("mine", "n", "g", "i1")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert cli("fit", "--recipe", micro_recipe, *SHORT, "--run-dir", "runs/off").code == 0
    assert not Path("runs/off/wandb").exists()
