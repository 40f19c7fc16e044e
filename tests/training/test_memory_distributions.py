"""Slots in use and tokens per slot: counted again token by token, written to `memory.jsonl` and to TensorBoard."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dla_train.callbacks.memory_seen import LARGEST_SIZE, SIZE_LIMITS, MemorySeen, count
from dla_train.callbacks.memory_watch import MemoryWatch
from dla_train.models import DynamicMemory, FixedMemory, LanguageModel, Mamba2Config, ModelConfig, initialize
from dla_train.models.memory import Memory
from dla_train.runs.memory_file import MemoryFile, read_lines
from dla_train.runs.metrics_file import TRAIN, VALIDATION, key_of

DOCUMENTS = [0, 7, 8, 40, 96]


def one_by_one(plan, documents):
    """Slots as lists of token counts, youngest first: boundaries by head, slots after each token, sizes at ends."""
    rows, _, heads = plan.shift.shape
    boundaries, slots, sizes = [0] * heads, Counter(), []
    for row in range(rows):
        for head in range(heads):
            for start, end in pairwise(documents):
                held = []
                for shift in plan.shift[row, start:end, head].tolist():
                    boundaries[head] += shift >= 0
                    if shift < 0:
                        held[0] += 1
                    else:
                        if shift < plan.capacity:
                            held[shift : shift + 2] = [sum(held[shift : shift + 2])]
                        held.insert(0, 1)
                    slots[len(held)] += 1
                sizes += held
    return boundaries, slots, sorted(sizes)


@pytest.fixture
def seen_and_plans():
    """What the watch of a model with two layers finds in three batches, and the plans that it saw."""

    def look(memory, documents=None, rows=2):
        mixer = Mamba2Config(heads=3, head_dim=8, state_dim=8, memory=memory)
        model = initialize(LanguageModel(ModelConfig(vocab_size=50, hidden=16, layers=2, mixer=mixer)), seed=0)
        watch, plans = MemoryWatch(model), {0: [], 1: []}
        for layer, block in enumerate(model.blocks):
            [module] = [module for module in block.modules() if isinstance(module, Memory)]
            module.register_forward_hook(lambda module, inputs, plan, layer=layer: plans[layer].append(plan))
        watch.is_active = True
        generator = torch.Generator().manual_seed(0)
        cu_seqlens = None if documents is None else torch.tensor(documents)
        for _ in range(3):
            model(torch.randint(0, 50, (rows, 96), generator=generator), cu_seqlens=cu_seqlens)
        return watch.collect(), plans

    return look


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("memory", [DynamicMemory(capacity=5, threshold=1.3), FixedMemory(block=8, capacity=4)])
def test_counts_are_those_of_counting_one_by_one(seen_and_plans, memory, documents):
    seen, plans = seen_and_plans(memory, documents, rows=1 if documents else 2)
    for layer in (0, 1):
        boundaries, slots, sizes = torch.zeros(3, dtype=torch.int64), Counter(), []
        for plan in plans[layer]:
            more = one_by_one(plan, documents or [0, 96])
            boundaries += torch.tensor(more[0])
            slots.update(more[1])
            sizes += more[2]
        found = seen[layer]
        assert found.boundaries.tolist() == boundaries.tolist()
        assert dict(enumerate(found.slots.tolist())) == {number: slots[number] for number in range(memory.capacity + 1)}
        if isinstance(memory, FixedMemory):
            assert found.held == 0
            assert "tokens_per_slot_mean" not in found.summary()
            continue
        assert 0 < min(boundaries) < found.tokens, "boundaries are neither everywhere nor nowhere"
        assert max(sizes) > 16, "buckets of more than one size are used"
        buckets = Counter(min(limit for limit in SIZE_LIMITS if size <= limit) for size in sizes)
        assert found.sizes.tolist() == [buckets[limit] for limit in SIZE_LIMITS]
        assert found.held == sum(sizes)
        summary = found.summary()
        assert summary["tokens_per_slot_mean"] == sum(sizes) / len(sizes)
        every = sorted(slots.elements())
        for label, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
            assert summary[f"slots_in_use_{label}"] == every[int(-(-len(every) * share // 1)) - 1]
            exact = sorted(sizes)[int(-(-len(sizes) * share // 1)) - 1]
            assert exact <= summary[f"tokens_per_slot_{label}"] <= exact * 9 / 8


def test_counting_compiles_without_a_warning(seen_and_plans, recwarn):
    """With `training.compile` it is a part of the block."""
    _, plans = seen_and_plans(DynamicMemory(capacity=5, threshold=1.3), None, rows=1)
    plan = plans[0][0]
    compiled = torch.compile(count, backend="eager")(plan)
    assert compiled.tolist() == count(plan).tolist()
    assert not [warning for warning in recwarn if "Dynamo" in str(warning.message)]


def test_sizes_fall_into_few_buckets():
    limits = SIZE_LIMITS
    assert limits[:18] == (*range(1, 17), 18, 20)
    assert limits[-1] == LARGEST_SIZE
    assert len(limits) < 200
    assert all(low < high <= max(low * 9 / 8, low + 1) for low, high in pairwise(limits))


def test_the_spread_over_heads_is_told():
    seen = MemorySeen(
        tokens=10,
        boundaries=torch.tensor([1, 9]),
        slots=torch.tensor([0, 5, 15]),
        sizes=torch.zeros(9, dtype=torch.int64),
        held=0,
    )
    assert seen.summary() == {
        "boundary_rate": 0.5, "boundary_rate_lowest_head": 0.1, "boundary_rate_highest_head": 0.9,
        "slots_in_use_mean": 1.75, "slots_in_use_p10": 1, "slots_in_use_p50": 2, "slots_in_use_p90": 2,
    }  # fmt: skip


def test_a_run_writes_them_and_a_resumed_one_the_same(cli, micro_recipe, tmp_path):
    arguments = [
        "fit", "--recipe", micro_recipe, "training.threads=1", "logging.histograms_every=3", "logging.memory_every=2",
        "logging.tensorboard=true", "training.steps=8", "training.validate_every=4",
        "training.activation_checkpointing=full",
    ]  # fmt: skip
    assert cli(*arguments, "--run-dir", "straight").code == 0
    lines = read_lines(tmp_path / "straight" / "memory.jsonl")
    places = [(line["step"], line["split"]) for line in lines if line["layer"] == 1]
    assert places == [(1, "train"), (4, "train"), (4, "validation"), (7, "train"), (8, "validation")]
    assert [line["layer"] for line in lines] == [0, 1] * 5

    events = EventAccumulator(str(tmp_path / "straight" / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    names = {f"{split}_memory/{name}.{layer}" for split in ("train", "validation") for layer in (0, 1)
             for name in ("boundary_rate_of_heads", "slots_in_use", "tokens_per_slot")}  # fmt: skip
    assert set(events.Tags()["histograms"]) == names
    drawn = events.Histograms("train_memory/slots_in_use.1")
    assert [event.step for event in drawn] == [1, 4, 7]
    for event, line in zip(
        drawn, [line for line in lines if line["split"] == "train" and line["layer"] == 1], strict=True
    ):
        value = event.histogram_value
        assert value.num == 4 * 24 * 2, "each token of the step once for each head, though blocks are computed again"
        assert value.sum / value.num == line["slots_in_use_mean"]
        limits, counts = list(value.bucket_limit), list(value.bucket)
        assert sum(limit * count for limit, count in zip(limits, counts, strict=True)) == value.sum

    assert cli(*arguments, "--run-dir", "stopped", "training.max_minutes=1e-9").code == 0
    assert read_lines(tmp_path / "stopped" / "memory.jsonl")[-1]["step"] < 8
    assert cli(*arguments, "--run-dir", "stopped", "--resume", "auto").code == 0
    again = [line for line in read_lines(tmp_path / "stopped" / "memory.jsonl") if line["split"] == "train"]
    assert again == [line for line in lines if line["split"] == "train"]


def test_the_page_names_every_number(seen_and_plans):
    page = (Path(__file__).parents[2] / "docs" / "memories.md").read_text()
    seen, _ = seen_and_plans(DynamicMemory(capacity=5, threshold=1.3))
    for name in seen[0].summary():
        stem, _, label = name.rpartition("_")
        is_listed = f"`{stem}_mean`" in page and (label == "mean" or f"`_{label}`" in page)
        assert f"`{name}`" in page or is_listed, name


@pytest.mark.parametrize("split", [TRAIN, VALIDATION])
def test_lines_after_the_row_to_go_on_after_and_torn_ones_are_dropped(tmp_path, split):
    path = tmp_path / "memory.jsonl"
    rows = [(1, TRAIN), (4, TRAIN), (4, VALIDATION), (7, TRAIN)]
    file = MemoryFile(path, (0, TRAIN))
    for row in rows:
        file.append(*row, {0: {"boundary_rate": 0.1}})
    file.close()
    path.write_text(path.read_text() + "\0\0\0lit\n" + '{"split": "train"}\n{"step": 2}\n7\n' + '{"step": 7, "sp')
    MemoryFile(path, (4, split)).close()
    assert [key_of(line) for line in read_lines(path)] == rows[: 2 if split == TRAIN else 3]


def test_models_without_slots_have_no_file(cli, micro_recipe, tmp_path):
    settings = ["training.steps=4", "model.mixer.memory={kind: single}"]
    assert cli("fit", "--recipe", micro_recipe, *settings, "--run-dir", "run").code == 0
    assert not (tmp_path / "run" / "memory.jsonl").exists()


def test_an_impossible_interval_is_refused(cli, micro_recipe):
    done = cli("fit", "--recipe", micro_recipe, "logging.histograms_every=0")
    assert done.code == 2
    assert "histograms_every is 0; it must be at least 1" in done.err
