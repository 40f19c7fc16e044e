"""Kind `streaming` through the real Trainer and command line: the same tokens however the run is stopped and read."""

import hashlib
import itertools
import json
import random
import re
import signal
import time
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import zstandard
from lightning.pytorch.callbacks import Callback

from dla_data.tokenizer import save_tokenizer, train_tokenizer
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data.corpus import open_data
from dla_train.data.streaming import StreamingDataModule
from dla_train.runs.metrics_file import read_rows
from dla_train.training import fit as fit_module
from tests.training.exact_rows import exact_rows

STREAMING = """\
data:
  kind: streaming
  tokenizer: TOKENIZER
  vocab_size: 300
  window: 24
  streams: 8
  held_out: 0.1
  sources:
    tale: {path: ROOT/tale, weight: 3}
    list: {path: ROOT/list.parquet, weight: 1}
"""
STEPS = 48


def _documents(seed, count):
    draw = random.Random(seed)
    words = ["alpha", "beta", "gamma", "delta", "kappa", "omega", "state", "slot", "merge", "token"]
    return [f"{seed} {number}: " + " ".join(draw.choices(words, k=draw.randint(3, 40))) for number in range(count)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two sources: a directory of JSON lines and one Parquet file."""
    root = tmp_path_factory.mktemp("sources")
    (root / "tale").mkdir()
    for number in range(4):
        lines = [json.dumps({"text": text}) + "\n" for text in _documents(number, 12)]
        (root / "tale" / f"{number}.jsonl").write_text("".join(lines))
    table = pyarrow.table({"text": _documents(9, 24), "id": range(24)})
    pyarrow.parquet.write_table(table, root / "list.parquet", row_group_size=3)
    save_tokenizer(train_tokenizer(_documents(0, 40), 300), root / "tokenizer.json")
    return root


@pytest.fixture
def recipe(root, micro_recipe, tmp_path):
    section = STREAMING.replace("ROOT", str(root)).replace("TOKENIZER", str(root / "tokenizer.json"))
    text = re.sub(r"^data: .*\n", section, micro_recipe.read_text(), flags=re.MULTILINE)
    text = text.replace("steps: 20", f"steps: {STEPS}").replace("validate_every: 5", "validate_every: 20")
    path = tmp_path / "streamed.yaml"
    path.write_text(text)
    return path


class Chain(Callback):
    """A hash of all token ids of each step, in their order; it does not see where micro-batches begin."""

    def __init__(self):
        self._hashes = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._hashes.setdefault(trainer.global_step, hashlib.sha256()).update(batch.numpy().tobytes())

    @property
    def by_step(self):
        return {step: digest.hexdigest() for step, digest in self._hashes.items()}


@pytest.fixture
def train(cli, recipe, monkeypatch):
    """Run `fit`; returns what it said and the chain of the steps that this start did."""
    build = fit_module.build_trainer

    def run(*arguments):
        chain = Chain()
        monkeypatch.setattr(
            fit_module,
            "build_trainer",
            lambda config, *, callbacks, **rest: build(config, callbacks=[*callbacks, chain], **rest),
        )
        done = cli("fit", "--recipe", recipe, "report.prompt=null", "training.threads=1", *arguments)
        assert done.code == 0, done.err
        return done.err, chain.by_step

    return run


def test_three_resumes_with_other_workers_and_batches_see_the_same_tokens(train, tmp_path):
    err, straight = train("--run-dir", "straight", "checkpoint.every=null")
    assert re.search(r"opened the text and read the validation windows in \d+\.\d s", err)
    assert re.search(r"first batch after \d+\.\d s", err)
    assert re.search(r"streaming from 5 files \(0\.\d MB\) of tale, list; 48 steps of 96 tokens; 4 validation", err)
    assert list(straight) == list(range(STEPS))

    pieces = {}
    for steps, workers, micro_batch in ((7, 2, 2), (23, 1, 1), (24, 4, 4), (STEPS, 0, 2)):
        err, steps_done = train(
            "--run-dir", "pieces", "--resume", "auto", f"training.steps={steps}", f"data.workers={workers}",
            f"training.micro_batch={micro_batch}", "checkpoint.every=5", "schedule.warmup=1",
        )  # fmt: skip
        assert not pieces.keys() & steps_done.keys()
        pieces |= steps_done
    assert pieces == straight
    state = torch.load(tmp_path / "pieces" / "checkpoints" / f"step-{STEPS:08}" / "state.ckpt", weights_only=True)
    epochs = [source[0] for stream in state["StreamingDataModule"]["streams"].values() for source in stream]
    assert len(epochs) == 16
    assert max(epochs) >= 1, "the test must go beyond the first epoch"


def _opened(path, *settings):
    """The data of a recipe, the first windows of its training and all of its validation."""
    data = open_data(load(find(str(path)), settings))
    assert isinstance(data, StreamingDataModule)
    data.trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1)  # type: ignore[assignment]
    first = itertools.islice(iter(data.train_dataloader()), 8)
    return data, torch.cat(list(first)), torch.stack([*data.validation_windows])


def test_the_order_of_the_sources_in_the_recipe_does_not_matter(recipe):
    text = recipe.read_text()
    one, other = (line for line in text.splitlines() if line.startswith(("    tale:", "    list:")))
    recipe.with_name("turned.yaml").write_text(text.replace(f"{one}\n{other}", f"{other}\n{one}"))
    (data, *windows), (turned, *same) = _opened(recipe), _opened(recipe.with_name("turned.yaml"))
    assert [*turned.config.sources] == [*data.config.sources][::-1]
    torch.testing.assert_close(same, windows, rtol=0, atol=0)


def test_another_seed_is_another_order_and_the_same_validation(recipe):
    (_, first, validated), (_, other, same) = _opened(recipe), _opened(recipe, "seed=1")
    assert not torch.equal(other, first)
    assert torch.equal(same, validated)


def test_validation_does_not_depend_on_the_number_of_streams(recipe):
    (few, two, validated), (many, eight, same) = _opened(recipe, "data.streams=2"), _opened(recipe)
    assert few.text.sources[1].text.shards != many.text.sources[1].text.shards, "files are cut for many streams"
    assert not torch.equal(two, eight)
    assert torch.equal(same, validated)


def test_metrics_count_the_tokens_of_each_source(train, tmp_path):
    train("--run-dir", "run", "training.steps=20")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.csv") if row["split"] == "train"]
    assert [row["tokens.tale"] + row["tokens.list"] for row in rows] == [row["tokens"] for row in rows]
    assert rows[-1]["tokens.tale"] == 3 * rows[-1]["tokens.list"] == 20 * 96 * 3 // 4


def test_a_curriculum_cuts_the_same_tokens_into_shorter_windows_and_resumes_in_any_phase(train, monkeypatch):
    shapes = {}
    keep = Chain.on_train_batch_start

    def note(self, trainer, pl_module, batch, batch_idx):
        shapes.setdefault(trainer.global_step, []).append(tuple(batch.shape))
        whole = torch.cat([batch[:, :-1].reshape(-1, 24), batch[:, 1:].reshape(-1, 24)[:, -1:]], dim=1)
        keep(self, trainer, pl_module, whole, batch_idx)

    monkeypatch.setattr(Chain, "on_train_batch_start", note)
    _, plain = train("--run-dir", "plain", "training.steps=9")
    curriculum = "data.curriculum={windows: [6, 12], steps: [3, 2]}"
    shapes.clear()
    _, first = train("--run-dir", "short", curriculum, "training.steps=4", "schedule.warmup=1")
    err, rest = train("--run-dir", "short", curriculum, "training.steps=9", "schedule.warmup=1", "--resume", "auto")
    assert first | rest == plain
    assert [shapes[step] for step in (0, 2, 3, 4, 5, 8)] == [[(8, 7)] * 2] * 2 + [[(4, 13)] * 2] * 2 + [
        [(2, 25)] * 2
    ] * 2
    assert re.search(r"windows of 12 tokens from step 5 on\n(.*\n)*.*windows of 24 tokens from step 6 on", err)


def test_a_folder_laid_out_like_a_data_set_of_the_hub_is_read_through_datasets(train, tmp_path):
    folder = tmp_path / "Long-Data-Collections" / "pretrain"
    folder.mkdir(parents=True)
    for name in ("arxiv", "book"):
        lines = "".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in _documents(name, 60))
        (folder / f"{name}.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    mirror = f"data.sources.tale.path=hf:{folder.parent}"
    _, straight = train("--run-dir", "straight", mirror, "training.steps=24")
    _, first = train("--run-dir", "pieces", mirror, "training.steps=9")
    _, rest = train("--run-dir", "pieces", mirror, "training.steps=24", "--resume", "auto", "data.workers=2")
    assert first | rest == straight


@pytest.mark.slow
def test_losses_of_a_run_killed_twice_are_bitwise_those_of_one_that_never_stopped(cli, recipe, fork_process, tmp_path):
    arguments = ["fit", "--recipe", recipe, "training.threads=1", "report.prompt=null"]
    assert cli(*arguments, "--run-dir", "straight").code == 0
    arguments += ["--run-dir", "killed", "--resume", "auto"]
    for step, workers in ((9, 2), (25, 0)):
        process = fork_process("-m", "dla_train", *arguments, f"data.workers={workers}")
        deadline = time.monotonic() + 120
        while not any(row["step"] >= step for row in read_rows(tmp_path / "killed" / "metrics.csv")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before the kill"
    done = cli(*arguments, "data.workers=1")
    assert done.code == 0, done.err
    assert "going on from step" in done.err
    assert exact_rows(tmp_path / "killed") == exact_rows(tmp_path / "straight")


def test_a_source_that_must_not_repeat_stops_the_run_at_its_end(cli, recipe):
    done = cli("fit", "--recipe", recipe, "data.sources.list.at_end=stop", "training.steps=2000", "checkpoint.every=2")
    assert done.code == 1
    assert re.search(r"error: list is at its end for stream \d of 8, and it is not to be repeated\.", done.err)
    assert "The newest checkpoint is that of step" in done.err


@pytest.mark.parametrize("share", ["0.0001", "0"])
def test_no_validation_windows_are_read_where_there_is_no_validation(cli, recipe, tmp_path, share):
    """Two documents of a share so small fill no window, which is refused where one is wanted."""
    none = ("training.validation_windows=0", "training.validate_every=null", "training.steps=4")
    done = cli("fit", "--recipe", recipe, f"data.held_out={share}", *none)
    assert done.code == 0, done.err
    assert [row["split"] for row in read_rows(tmp_path / "runs/streamed/metrics.csv")] == ["train"] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.sources.tale.path=nowhere"], r"data\.sources\.tale: no source at nowhere"),
        (["data.sources.list.text_field=body"], r"data\.sources\.list: .*list\.parquet has no column 'body'"),
        (["data.tokenizer=nowhere.json"], r"data\.tokenizer: cannot read the tokenizer nowhere\.json"),
        (["data.vocab_size=299"], r"vocab_size: the tokenizer .* has ids up to 299, .* set to 299\. Set at least 300"),
        (["data.tokenizer=GAPS"], r"data\.vocab_size: the tokenizer .*gaps\.json has ids up to 400, .* is set to 300"),
        (["data.held_out=0.0001"], r"data\.sources\.\w+: .* its held-out documents .* do not fill one window"),
        (["data.held_out=1"], r"data\.held_out is 1\.0; it must be at least 0 and below 1"),
        (["data.held_out=0"], r"data\.held_out is 0, which keeps no text for validation; .*validation_windows=0 and"),
        (["data.workers=3"], r"data\.streams is 8, not a multiple of 3 workers"),
        (["data.sources.tale.weight=0"], r"data\.sources\.tale\.weight is 0\.0; it must be above 0"),
        (["data.sources.tale.wieght=1"], r"wieght is not a key .* Did you mean data\.sources\.tale\.weight"),
        (["data.sources={}"], r"data\.sources must be a section with at least one named section"),
        (["data.curriculum={windows: [7], steps: [1]}"], r"curriculum\.windows has 7, of which window 24 is"),
        (["data.curriculum={windows: [6], steps: [1, 2]}"], r"curriculum\.windows has 1 lengths and steps 2 numbers"),
        (["training.validation_windows=null"], r"training\.validation_windows is null, but streamed text has no end"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence_with_its_place(cli, recipe, root, tmp_path, settings, message):
    tree = json.loads((root / "tokenizer.json").read_text())
    tree["model"]["vocab"] = {token: 400 if id == 299 else id for token, id in tree["model"]["vocab"].items()}
    (tmp_path / "gaps.json").write_text(json.dumps(tree))
    settings = [setting.replace("GAPS", str(tmp_path / "gaps.json")) for setting in settings]
    done = cli("fit", "--recipe", recipe, *settings)
    assert done.code == 2, done.err
    assert re.search(message, done.err.replace("\n", " ")), done.err
    assert not (tmp_path / "runs" / "streamed" / "metrics.csv").exists()


def test_other_text_is_refused_on_resume_and_moved_text_is_not(cli, recipe, root, tmp_path):
    assert cli("fit", "--recipe", recipe, "training.steps=5", "report.prompt=null").code == 0
    arguments = ["fit", "--recipe", recipe, "--resume", "auto", "report.prompt=null", "training.steps=6"]
    moved = tmp_path / "moved" / "list.parquet"
    moved.parent.mkdir()
    moved.write_bytes((root / "list.parquet").read_bytes())
    assert cli(*arguments, f"data.sources.list.path={moved}").code == 0
    pyarrow.parquet.write_table(pyarrow.table({"text": _documents(8, 24)}), moved)
    done = cli(*arguments, f"data.sources.list.path={moved}", "training.steps=7")
    assert done.code == 2
    assert "the text of data.sources.list changed since" in done.err

    branch = ["fit", "--recipe", recipe, "--run-dir", "branch", "--resume", tmp_path / "runs/streamed"]
    branch += ["report.prompt=null", f"data.sources.list.path={moved}", "data.streams=4", "checkpoint.every=1"]
    done = cli(*branch, "training.steps=7")
    assert done.code == 0, done.err
    assert "the data or its order is another one than there: every stream begins with its first document." in done.err
    done = cli(*branch[:5], "--resume", "auto", *branch[7:], "training.steps=8")
    assert done.code == 0, done.err
    assert "every stream" not in done.err


TWO_RANKS = """
import datetime, hashlib, json, sys
from types import SimpleNamespace
import torch.distributed as dist
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.data.corpus import open_data

rank, recipe, store, before = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
data = open_data(load(find(recipe), ["training.steps=20", f"data.workers={rank}"]))
data.trainer = SimpleNamespace(global_rank=rank, world_size=2, global_step=0)
if before != "-":
    state = json.loads(before)
    state["streams"] = {int(stream): states for stream, states in state["streams"].items()}
    data.load_state_dict(state)
    data.trainer.global_step = state["step"]
batches = [batch.tolist() for batch in data.train_dataloader()]
data.trainer.global_step = 20
print(json.dumps({"batches": batches, "state": data.state_dict()}))
"""


@pytest.mark.slow
def test_two_real_processes_go_on_from_one_and_save_what_one_would(cli, recipe, fork_process, tmp_path):
    from types import SimpleNamespace

    from dla_train.config.catalog import find
    from dla_train.config.load import load
    from dla_train.data.corpus import open_data

    data: Any = open_data(load(find(str(recipe)), ["training.steps=20"]))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0)
    straight, states = [], {}
    for number, batch in enumerate(data.train_dataloader()):
        straight.append(batch)
        data.trainer.global_step = (number + 1) // 2  # two micro-batches of 2 make the global batch of 4
        states[data.trainer.global_step] = data.state_dict()
    straight = torch.stack(straight).unflatten(0, (20, 2)).flatten(1, 2)

    arguments = ("-c", TWO_RANKS)
    ranks = [fork_process(*arguments, rank, recipe, tmp_path / "store", json.dumps(states[6])) for rank in range(2)]
    said = [process.communicate(timeout=120) for process in ranks]
    assert all(process.returncode == 0 for process in ranks), said
    found = [json.loads(out) for out, _ in said]
    batches = torch.stack([torch.tensor(rank["batches"]) for rank in found], dim=2)  # [steps, 2, ranks, window + 1]
    assert torch.equal(batches.flatten(1, 2), straight[6:])
    assert found[0]["state"] == found[1]["state"] == json.loads(json.dumps(states[20]))
