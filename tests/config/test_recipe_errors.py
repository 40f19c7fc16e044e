import re

import pytest


@pytest.fixture
def recipe_text(micro_recipe):
    return micro_recipe.read_text()


def _line(text, fragment):
    return next(number for number, line in enumerate(text.splitlines(), 1) if fragment in line)


@pytest.mark.parametrize(
    ("written", "instead", "expected"),
    [
        (
            "threshold: 0.9",
            "treshold: 0.9",
            "model.mixer.memory.treshold is not a key (given 0.9). Did you mean model.mixer.memory.threshold?",
        ),
        ("steps: 20", "steps: many", "training.steps must be a whole number, but is 'many'."),
        ("steps: 20", "steps: 2e1", "training.steps must be a whole number, but is 20.0. Write 20."),
        ("steps: 20", "steps: true", "training.steps must be a whole number, but is true."),
        ("steps: 20", "steps: null", "training.steps must be a whole number, but is null."),
        ("lr: 1e-2", "lr: -1", "optimizer.lr is -1.0; it must be above 0."),
        ("lr: 1e-2", "lr: .nan", "optimizer.lr must be a finite number, but is nan."),
        ("lr: 1e-2", "lr: nan", "optimizer.lr must be a finite number, but is"),
        ("lr: 1e-2", "lr: 1e-2, betas: [0.9, inf]", "optimizer.betas are [0.9, inf]; each must be at least 0"),
        ("hidden: 16", "hidden: 100000000", "model.hidden is 100000000; it must be at most 16,777,216"),
        ("lr: 1e-2", "lr: 1, betas: [0.9]", "optimizer.betas must be a list of 2 values, each a finite number"),
        (
            "window: 24",
            "window: 24, suffixes: .txt",
            "data.suffixes must be a list of values, each a text, but is '.txt'.",
        ),
        ("lr: 1e-2", "lr: 1, betas: {a: 1}", "optimizer.betas must be a list of 2 values, each a finite number"),
        ("lr: 1e-2", "lr: 1, betas: [[0.9], 0.9]", "optimizer.betas must be a list of 2 values, each a finite number"),
        ("kind: cosine", "kind: [cosine]", "schedule.kind must be one of cosine, linear, wsd, constant, but is ['cos"),
        ("lr: 1e-2", "lr: '???'", "optimizer.lr has no value (kind adamw needs it): set it in the recipe or with"),
        ("capacity: 4", "capacity: 0", "model.mixer.memory.capacity is 0; it must be a whole number of at least 1."),
        ("kind: cosine", "kind: cosin", "schedule.kind must be one of cosine, linear, wsd, constant, but is 'cosin'."),
        ("kind: cosine", "kind: cosin", "Did you mean cosine?"),
        ("micro_batch: 2", "micro_batch: 3", "training.global_batch is 4, not a multiple of micro_batch 3; 3 or 6"),
        ("accelerator: cpu", "accelerator: tpu", "training.accelerator must be one of auto, cpu, gpu, but is 'tpu'."),
        ("tensorboard: false", "tensorboard: 3", "logging.tensorboard must be true or false, but is 3."),
        (
            "warmup: 3",
            "warmup: 30",
            "schedule.warmup is 30, but training.steps is only 20; the warm-up must end before",
        ),
        (
            "kind: cosine",
            "kind: wsd, decay: 18",
            "schedule.decay is 18, but training.steps 20 leave only 17 behind the warm-up; the decay must begin",
        ),
        ("window: 24", "window: 0", "data.window is 0; it must be at least 1 token."),
        ("vocab_size: 300", "vocab_size: 200", "data.vocab_size is 200; it must be at least 257"),
        ("${data.vocab_size}", "${data.vocab}", "model.vocab_size refers to data.vocab, which has no value."),
        ("alpha beta", "'echo ${HOME}'", "A text that has a plain ${ in it is written with \\${."),
        ("steps: 20", r"steps: '\${seed}'", "training.steps must be a whole number, but is '${seed}'."),
        ("checkpoint: {every: 4}", "checkpoint: never", "checkpoint must be a section with keys (every, keep_last, "),
        (
            "optimizer: {kind: adamw, lr: 1e-2}",
            "optimizer: 3",
            "optimizer must be one of adamw, muon or a section with a kind",
        ),
    ],
)
def test_an_error_names_file_line_key_value_and_what_is_allowed(recipe_text, tmp_path, cli, written, instead, expected):
    path = tmp_path / "mine.yaml"
    changed = recipe_text.replace(written, instead)
    assert changed != recipe_text
    path.write_text(changed)
    done = cli("show", "mine.yaml")
    # `micro_batch` is what was changed in one case, `global_batch` what is complained about: both stand in one line.
    assert f"dla-train: error: mine.yaml:{_line(changed, instead)}: " in done.err
    assert expected in done.err
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1, "one message, no traceback"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("steps=5", "steps is not a key (given 5). Keys at the top level: "),
        ("lr=5", "Did you mean optimizer.lr?"),
        (
            "memory.steer=0.1",
            "profile, report. Did you mean model.mixer.memory.steer or model.hybrid.mixer.memory.steer?",
        ),
        ("memory=fenwick", "profile, report. Did you mean model.mixer.memory or model.hybrid.mixer.memory?"),
        ("treining.steps=5", "treining is not a key (given {'steps': 5}). Did you mean training?"),
        ("training.stepps=5", "Did you mean training.steps?"),
        ("training.STEPS=5", "training.STEPS is not a key (given 5). Did you mean training.steps?"),
        ("model.mixer.memory=dynamc", "must be one of single, fixed, fenwick, dynamic, but is 'dynamc'."),
        ("model.mixer.memory=fenwick model.mixer.memory.block=3", "Keys in model.mixer.memory (kind fenwick): kind, "),
        (
            "strategy.devices=2",
            "(kind single): kind. It is one of kind ddp, deepspeed and fsdp: strategy=ddp strategy.devices=2.",
        ),
        (
            "strategy=ddp strategy.replicas=2",
            "(kind ddp): kind, context_parallel, devices, nodes. It is one of kind fsdp: strategy=fsdp "
            "strategy.replicas=2.",
        ),
        (
            "strategy=ddp strategy.replica=2",
            "Did you mean strategy.replicas? Keys in strategy (kind ddp): kind, context_parallel, devices, nodes. "
            "replicas is one of kind fsdp: strategy=fsdp strategy.replicas=2.",
        ),
        (
            "strategy=ddp strategy.device=2",
            "(given 2). Did you mean strategy.devices? Keys in strategy (kind ddp): kind",
        ),
        (
            "model.mixer=attention model.mixer.heads=2 model.mixer.memory.capacity=3",
            "is one of kind mamba2 and gated_deltanet: model.mixer=mamba2 model.mixer.memory.capacity=3.",
        ),
        ("model.mixer.memory=single model.mixer.memory.gate=1", "kind dynamic: model.mixer.memory=dynamic model.mixer"),
        ("data.kind=prepared data.path=x", "data.vocab_size has no value: the command line gives data another kind,"),
        ("training.micro_batch=3", "on the command line: training.global_batch is 4, not a multiple of micro_batch 3"),
        (
            "model.hybrid.every=2 model.hybrid.mixer.kind=attention model.hybrid.mixer.heads=3",
            "model.hidden is 16 and hybrid.mixer.heads is 3; hidden must be a multiple of twice the heads",
        ),
        ("training.steps=3", "schedule.warmup is 3, but training.steps is only 3; the warm-up must end before"),
        ("optimizer.lr=1e300", "optimizer.lr is 1e+300; it must be at most 1e+38"),
        ("training.steps=10000000000", "training.steps is 10000000000; it must be at most 1,000,000,000"),
        ("training.global_batch=20000000", "training.global_batch is 20000000; it must be at most 16,777,216"),
        ("training.threads=5000", "training.threads is 5000; it must be at most 1,024"),
        ("data.window=1" + 20 * "0", "data.window is 100000000000000000000; it must be at most 2,147,483,647"),
        ("data.workers=5000", "data.workers is 5000; it must be at most 1,024"),
        ("model.norm_eps=2", "model.norm_eps is 2.0; it must be at most 1."),
        ("model.init_std=1e9", "model.init_std is 1000000000.0; it must be at most 100."),
        ("model.mlp_ratio=1e99", "model.mlp_ratio is 1e+99, times hidden 16; it must be at most 16,777,216"),
        (
            "model.mixer.heads=16777216 model.mixer.groups=16777216",
            "model.mixer.heads is 16777216 and head_dim 8; their product must be at most 16,777,216",
        ),
        (
            "model.hybrid.layers=3 model.hybrid.mixer.kind=attention model.hybrid.mixer.heads=2",
            "model.hybrid.layers must be a list of values, each a whole number; or null, but is 3.",
        ),
        ("model.layers=1001", "model.layers is 1001; it must be at most 1,000"),
        (
            "schedule=wsd",
            "schedule.decay has no value (kind wsd needs it): set it in the recipe or with schedule.decay=NUMBER.",
        ),
        ("schedule=wsd schedule.decay=21", "schedule.decay is 21, but training.steps 20 leave only 20 behind"),
        (f"training.steps={'1' * 5000}", "training.steps must be a whole number, but is '1111"),
        (f"seed={'[' * 5000}", "seed must be a whole number, but is '[["),
        ("training.steps.x=5", "training.steps is a value, it has no x inside."),
        ("model.vocab_size=280", "model.vocab_size is 280, but the tokenizer of data.vocab_size makes ids up to 299"),
        ("model.mixer.memory.threshold=3", "model.mixer.memory.threshold is 3.0; it must lie in [0, 2]"),
    ],
)
def test_an_error_in_a_setting_says_so(cli, micro_recipe, settings, expected):
    done = cli("show", micro_recipe, *settings.split())
    assert done.err.startswith("dla-train: error: ")
    assert "on the command line" in done.err
    assert expected in done.err
    assert done.code == 2


def test_a_setting_that_is_only_advised_or_that_fits_is_not_blamed(recipe_text, tmp_path, cli):
    attention = "{kind: attention, heads: 3}"
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_text.replace("  mixer:", f"  hybrid: {{every: 2, mixer: {attention}}}\n  mixer:"))
    done = cli("show", "mine.yaml", "model.layers=4", "model.mixer.heads=8", "training.steps=40")
    assert f"mine.yaml:{_line(path.read_text(), 'hidden:')}: model.hidden is 16 and hybrid.mixer.heads is 3" in done.err
    path.write_text(recipe_text.replace("steps: 20", "stepps: 20"))
    done = cli("show", "mine.yaml", "training.steps=40")
    assert f"mine.yaml:{_line(path.read_text(), 'stepps')}: training.stepps is not a key (given 20)" in done.err


def test_a_word_that_is_near_no_key_gets_no_guess(cli, micro_recipe):
    assert "Did you mean" not in cli("show", micro_recipe, "foo=1").err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "mine.yaml is empty: a recipe has the sections description, seed, model"),
        ("- 1\n", "mine.yaml does not hold keys and values"),
        ("data: stdlib\n", "mine.yaml: model has no value: it must be a section with keys (vocab_size, hidden, "),
        (
            "model: {vocab_size: 9, hidden: 16, layers: 1}\n",
            "mine.yaml:1: model.mixer has no value: it must be a section whose kind is one of mamba2, gated_deltanet, ",
        ),
        (
            "model: {vocab_size: '${data.vocab_size}'}\ndata: stdlib\n",
            "mine.yaml:1: model.vocab_size refers to data.vocab_size, which has no value. A text",
        ),
        ("seed: 1\nmodel: {}\nseed: 2\n", "mine.yaml:3: seed is given twice, first in line 1. Keep one."),
        ("seed: [1\nmodel: 2", "mine.yaml:2: not valid YAML"),
        (f"model: {'[' * 5000}\n", "mine.yaml: its lists or sections are nested too deep for a recipe."),
        (f"seed: 1\ndata: {'1' * 5000}\n", "mine.yaml:2: not valid YAML: a number of too many digits."),
        ("seed: &a [*a]\n", "an alias (*name) stands inside what it refers to."),
        ("seed: !!python/object/apply:os.getcwd []\n", "mine.yaml:1: the YAML tag tag:yaml.org,2002:python/"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_sentence(cli, tmp_path, text, expected):
    (tmp_path / "mine.yaml").write_text(text)
    done = cli("show", "mine.yaml")
    assert expected in done.err
    assert done.code == 2
    assert done.err.count("\n") == 1


def test_a_file_that_is_not_text_is_refused(cli, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"seed: \xff\n")
    assert "mine.yaml is not UTF-8 text (byte 6)" in cli("show", "mine.yaml").err


def test_debug_shows_the_traceback(cli, micro_recipe):
    from dla_train.errors import UsageError

    with pytest.raises(UsageError, match=re.escape("training.steps is 0")):
        cli("--debug", "show", micro_recipe, "training.steps=0")
