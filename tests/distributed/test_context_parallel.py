"""Several ranks share each window: the training of one process, or of one rank for each group, with what memories do,
calibration and steering, whatever strategy divides the rest."""

import json

import pytest

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.devices import device_named
from dla_train.estimate.estimate import estimate
from dla_train.runs.memory_file import read_lines
from dla_train.runs.metrics_file import read_rows
from tests.distributed.conftest import ON_TWO_NODES, numbers, require_equal

FOUR_HEADS = ("model.mixer.heads=4", "model.mixer.head_dim=4")
THRESHOLDS = (
    "model.mixer.memory.calibrate_rate=0.2",
    "model.mixer.memory.calibrate_steps=2",
    "model.mixer.memory.steer=0.3",
)


def shared(kind, size):
    return f"strategy={{kind: {kind}, context_parallel: {size}}}"


def require_equal_memories(folder, expected):
    """What the memories of all heads did, as counts of tokens and slots: the same, but for a score at the threshold."""
    names = [
        name for name in read_rows(folder / "metrics.csv")[0] if name.startswith(("boundary_rate", "slots_in_use"))
    ]
    assert len(names) == 4
    for split in ("train", "validation"):
        for name in names:
            assert numbers(folder, split, name) == pytest.approx(numbers(expected, split, name), rel=0.02), name
    found, wanted = (read_lines(run / "memory.jsonl") for run in (folder, expected))
    assert len(found) == len(wanted) > 1
    for line, other in zip(found, wanted, strict=True):
        assert line == pytest.approx(other, rel=0.05)


@pytest.fixture
def prepared(cli, tmp_path, text_corpus):
    """A folder `tokens` of many short documents, `tale.jsonl`."""
    lines = text_corpus.read_text().splitlines()
    (tmp_path / "tale.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    done = cli("prepare", "tale.jsonl", "--out", "tokens", "--train-tokenizer", "300", "--validation-share", "0.2")
    assert done.code == 0, done.err


STREAMED = (
    "data={kind: streaming, tokenizer: tokens/tokenizer.json, vocab_size: 300, window: 24, streams: 4, held_out: 0.2, "
    "sources: {tale: {path: tale.jsonl}}}"
)


@pytest.mark.parametrize("data", ["text", "streamed"])
def test_two_ranks_train_what_one_process_does_and_any_number_goes_on(
    cli, fit_on, fit_arguments, at_step_4, tmp_path, prepared, data
):
    sample = ["report.prompt=alpha", "report.max_tokens=4"]
    settings = [*THRESHOLDS, *sample, "logging.inspect_every=4", *([STREAMED] if data == "streamed" else [])]
    done = cli(*fit_arguments("one", *settings))
    assert done.code == 0, done.err
    said = fit_on(2, "two", shared("ddp", 2), *settings)
    assert "ddp on 2 processes (2 per node, started by dla-train), each window shared by 2" in said
    assert "Warning" not in said, said
    assert "Sample;" in said
    require_equal(tmp_path / "two", tmp_path / "one")
    require_equal_memories(tmp_path / "two", tmp_path / "one")
    assert numbers(tmp_path / "two", name="tokens") == numbers(tmp_path / "one", name="tokens")
    assert sorted(path.name for path in (tmp_path / "two/inspections").iterdir()) == [
        "step-00000004.html",
        "step-00000008.html",
    ]

    at_step_4("two", "resumed")
    assert "going on from step 4" in fit_on(2, "resumed", shared("ddp", 2), *settings, "--resume", "auto")
    require_equal(tmp_path / "resumed", tmp_path / "two", rel=0)

    at_step_4("two", "alone")
    done = cli(*fit_arguments("alone", *settings, "--resume", "auto"))
    assert done.code == 0, done.err
    require_equal(tmp_path / "alone", tmp_path / "one")


STRATEGIES = {
    "uneven": shared("ddp", 4),
    "ddp": shared("ddp", 2),
    "fsdp": shared("fsdp", 4),
    "replicas": "strategy={kind: fsdp, replicas: 2, context_parallel: 2}",
    "zero-2": "strategy={kind: deepspeed, stage: 2, context_parallel: 4}",
    "zero-3": "strategy={kind: deepspeed, stage: 3, context_parallel: 2}",
}


@pytest.mark.parametrize(
    "strategy",
    [name if name in ("uneven", "fsdp") else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES],
)
def test_four_ranks_train_as_many_as_there_are_groups(fit_on, tmp_path, strategy):
    """Groups see windows of their own, as ranks do: thresholds are calibrated and steered alike, too."""
    groups = 1 if strategy in ("uneven", "fsdp", "zero-2") else 2
    heads = ("model.mixer.heads=5", "model.mixer.head_dim=4") if strategy == "uneven" else FOUR_HEADS
    fit_on(groups, "few", "strategy=ddp", *heads, *THRESHOLDS)
    before = ON_TWO_NODES if strategy == "fsdp" else ""
    said = fit_on(4, "four", STRATEGIES[strategy], *heads, *THRESHOLDS, before=before)
    assert ("context_parallel is 4, and a node has 2 processes: some groups" in said) == bool(before), said
    uneven = "a mixer has 5 heads: each process takes the time of 2, as if there were 8."
    assert (uneven in said) == (strategy == "uneven")
    require_equal(tmp_path / "four", tmp_path / "few")
    require_equal_memories(tmp_path / "four", tmp_path / "few")


MODELS = {
    "gated_deltanet": "model.mixer={kind: gated_deltanet, heads: 2, key_dim: 8, value_dim: 8, memory: {kind: dynamic, "
    "capacity: 4, threshold: 0.9, learn_threshold: true}}",
    "hybrid": "model.hybrid={every: 2, mixer: {kind: attention, heads: 4, kv_heads: 1, window: 9}}",
    "selective": "training.activation_checkpointing=selective",
}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("documents", ["joined", "separate"])
def test_every_kind_of_model_and_of_batch(cli, fit_on, fit_arguments, tmp_path, prepared, model, documents):
    data = (
        f"data={{kind: prepared, path: tokens, vocab_size: 300, window: 24, documents: {documents}, "
        "curriculum: {windows: [8], steps: [2]}}"
    )
    settings = (MODELS[model], data)
    done = cli(*fit_arguments("one", *settings))
    assert done.code == 0, done.err
    fit_on(2, "two", shared("ddp", 2), *settings)
    require_equal(tmp_path / "two", tmp_path / "one")


COUNTED = """
from dla_train.models import context
exchange = context._all_to_all
def counted(x, group):
    with open(f"sent-by-{rank}", "a") as file:
        print(x.nbytes, file=file)
    return exchange(x, group)
context._all_to_all = counted
"""


def test_the_estimate_says_what_is_sent(fit_on, micro_recipe, tmp_path):
    """Of what is given to an exchange between two, each keeps its own half."""
    settings = (
        shared("ddp", 2), "training.steps=8", "training.micro_batch=1", "training.activation_checkpointing=every 2",
        "training.validate_every=null", "training.validation_windows=0",
    )  # fmt: skip
    fit_on(2, "run", *settings, before=COUNTED)
    stated = estimate(load(find(str(micro_recipe)), settings), device_named("h100"), 2, 0.3).sent
    for rank in range(2):
        assert sum(map(int, (tmp_path / f"sent-by-{rank}").read_text().split())) / 2 == 8 * stated


def test_answers_that_only_the_last_rank_sees(cli, fit_on, fit_arguments, tmp_path):
    settings = (
        "data={kind: synthetic, task: {kind: mqar, pairs: [1, 2]}, vocab_size: 16, window: 16}",
        "model.vocab_size=16", "training.global_batch=8", "training.micro_batch=2",
    )  # fmt: skip
    done = cli(*fit_arguments("one", *settings))
    assert done.code == 0, done.err
    fit_on(2, "two", shared("ddp", 2), *settings)
    require_equal(tmp_path / "two", tmp_path / "one")
    assert numbers(tmp_path / "two", "validation", "answer_accuracy") == pytest.approx(
        numbers(tmp_path / "one", "validation", "answer_accuracy")
    )


REFUSED = {
    "window": (["data.window=25"], "data.window is 25, which 2 processes cannot share evenly; make it a multiple of 2"),
    "keys": (
        ["model.mixer={kind: attention, heads: 4, kv_heads: 2}", "strategy.context_parallel=8"],
        "is 4 and model.mixer.kv_heads 2, which 8 processes cannot share evenly; with this mixer it may be 1, 2, 4",
    ),
    "other mixer": (
        ["model.hidden=24", "model.hybrid={every: 2, mixer: {kind: attention, heads: 6, kv_heads: 3}}"],
        "hybrid.mixer.heads is 6 and model.hybrid.mixer.kv_heads 3, which 2 processes cannot share evenly; with this "
        "mixer it may be 1, 3, 6",
    ),
    "groups": (
        ["model.mixer.heads=12", "model.mixer.groups=3"],
        "is 12 and model.mixer.groups 3, which 2 processes cannot share evenly; with this mixer it may be 1, 3, 6",
    ),
    "processes": (
        ["strategy.devices=3"],
        "it is 2, but 3 processes cannot form groups of 2 that share windows. It may be 1, 3, or take a multiple of 2.",
    ),
    "processes and windows": (
        ["strategy.devices=15", "data.window=6"],
        "it is 2, but 15 processes cannot form groups of 2 that share windows. It may be 1, 3, or take a multiple of",
    ),
    "none": (["strategy.context_parallel=0"], "context_parallel is 0; it must be at least 1"),
    "batch": (
        ["training.global_batch=3", "training.micro_batch=3", "strategy.devices=4"],
        "it is 3, which 4 processes in 2 groups of 2 cannot share out in micro-batches of 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_shared_is_refused(cli, fit_arguments, case):
    settings, error = REFUSED[case]
    done = cli(*fit_arguments("run", "strategy=ddp", "strategy.devices=2", "strategy.context_parallel=2", *settings))
    assert done.code == 2
    assert error in done.err


@pytest.mark.parametrize("command", ["fit", "estimate", "submit"])
def test_keys_that_cannot_be_shared_are_refused_before_anything_is_started(cli, micro_recipe, command):
    settings = ("model.mixer.heads=12", "model.mixer.groups=3", "strategy={kind: ddp, context_parallel: 2}")
    done = cli(command, "--recipe", micro_recipe, *(["--gpus-per-node", "0"] if command == "submit" else []), *settings)
    assert done.code == 2
    assert "model.mixer.groups 3, which 2 processes cannot share evenly" in done.err


@pytest.mark.parametrize(
    ("strategy", "setting", "said"),
    [
        ("{kind: ddp, context_parallel: 2}", "strategy.devices=3", "strategy.context_parallel: it is 2, but 3 "),
        ("{kind: ddp, context_parallel: 2}", "strategy.devices=16", "training.global_batch: it is 4, which 16 "),
        ("{kind: ddp, devices: 2}", "training.micro_batch=4", "training.global_batch: it is 4, which 2 "),
        ("{kind: ddp, devices: 6}", "strategy.context_parallel=2", "training.global_batch: it is 4, which 6 "),
        ("{kind: fsdp, replicas: 3}", "strategy.devices=2", "strategy.replicas: it is 3, but 2 processes "),
        ("{kind: ddp, context_parallel: 2}", "model.mixer.groups=3", "strategy.context_parallel is 2, but model.mixer"),
    ],
)
def test_what_the_command_line_has_changed_is_to_blame(cli, micro_recipe, tmp_path, strategy, setting, said):
    """Not the line of the recipe that it does not fit to."""
    recipe = tmp_path / "shared.yaml"
    recipe.write_text(micro_recipe.read_text().replace("heads: 2", "heads: 12") + f"strategy: {strategy}\n")
    done = cli("fit", "--recipe", recipe, "--run-dir", "run", setting)
    assert done.code == 2
    assert f"on the command line: {said}" in done.err
