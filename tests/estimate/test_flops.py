"""The stated FLOPs are those that torch's own counter finds in the products that are run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dla_kernels import fixed_plan, multi_state_attention
from dla_kernels.reader.chunk import CHUNK
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.flops import keys_read, model_work, slots_in_window, training_flops
from dla_train.estimate.reader_work import reader_work, reader_work_in_chunks
from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    GatedDeltaNetConfig,
    HybridConfig,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    SingleMemory,
    initialize,
)

CHUNKS = 8
WINDOW = CHUNKS * CHUNK


def read_in_torch(plan: Any, *, delta: bool, gate: bool, slots: int) -> tuple[int, int]:
    """FLOPs that torch counts in the op, forward and backward, for one head group of two heads."""
    generator = torch.Generator().manual_seed(0)
    heads = 2
    groups = heads if delta else 1

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(1, WINDOW, *shape, generator=generator).requires_grad_()

    if gate:
        plan = dataclasses.replace(plan, gate=torch.zeros(plan.shift.shape, requires_grad=True))
    log_decay = (-torch.rand(1, WINDOW, heads, generator=generator)).requires_grad_()
    inputs = random(groups, 6), random(groups, 6), random(heads, 10), random(heads, slots)
    with FlopCounterMode(display=False) as forward:
        o, _ = multi_state_attention(*inputs, plan, log_decay, random(heads) if delta else None, backend="torch")
    with FlopCounterMode(display=False) as backward:
        o.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
@pytest.mark.parametrize("gate", [False, True], ids=["hard", "straight-through"])
def test_the_reader_takes_the_products_of_the_formula(delta, gate):
    slots, heads = 4, 2
    plan = fixed_plan(1, WINDOW, heads, block=CHUNK, capacity=slots)
    forward, backward = read_in_torch(plan, delta=delta, gate=gate, slots=slots)
    work = reader_work_in_chunks(
        CHUNK, heads=heads, groups=heads if delta else 1, key_dim=6, value_dim=10, slots=slots, delta=delta, gate=gate
    )
    # A block is a chunk here: chunk n finds min(n, M) slots, the formula counts M; the last chunk's writes are not
    # needed; and the counter knows no triangular solves.
    found = sum(min(n, slots) for n in range(CHUNKS)) / CHUNKS / slots
    moved = sum(min(n, slots) for n in range(CHUNKS - 1)) / CHUNKS / slots
    written = (CHUNKS - 1) / CHUNKS
    share = {
        "slots read": found,
        "slot weights' gradient": found,
        "slots written": written,
        "delta rule on slots": moved,
    }
    solve = CHUNK * CHUNK * heads if delta else 0
    expected = sum(stage.forward * share.get(name, 1) for name, stage in work.items()) - solve
    assert forward == WINDOW * expected
    # The backward makes the states within each 8 chunks again: all that was written and carried, once.
    again = sum(work[name].forward * share[name] for name in ("slots written", "delta rule on slots") if name in work)
    expected = sum(stage.backward * share.get(name, 1) for name, stage in work.items()) + again - solve
    assert backward == WINDOW * expected


def counted(config: ModelConfig) -> int:
    model = initialize(LanguageModel(config), seed=0)
    tokens = torch.randint(0, config.vocab_size, (1, WINDOW + 1))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    return counter.get_total_flops()


MEMORIES = [SingleMemory(), DynamicMemory(capacity=3, threshold=2.0)]


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.kind)
@pytest.mark.parametrize("kind", ["mamba2", "gated_deltanet"])
def test_a_linear_model_takes_what_its_parts_say_and_nothing_quadratic(kind, memory):
    if kind == "mamba2":
        mixer = Mamba2Config(heads=4, head_dim=10, state_dim=6, groups=2, memory=memory)
    else:
        mixer = GatedDeltaNetConfig(heads=2, key_dim=6, value_dim=10, memory=memory)
    config = ModelConfig(vocab_size=120, hidden=24, layers=2, mixer=mixer)
    work = model_work(config, WINDOW)
    by_torch = counted(config) / WINDOW
    known = sum(work[name].training for name in ("mixer projections", "mlp", "head"))
    known += work["slot weights"].training if memory.kind == "dynamic" else 0
    # The rest is the reader's, whose count the test above takes apart. At a threshold of 2 one slot is ever in use.
    shape = {"heads": mixer.heads, "key_dim": 6, "value_dim": 10, "slots": 1, "gate": memory.kind == "dynamic"}
    stages = reader_work_in_chunks(CHUNK, groups=2, delta=kind == "gated_deltanet", **shape)
    share = dict.fromkeys(["slots read", "slot weights' gradient", "slots written"], (CHUNKS - 1) / CHUNKS)
    share["delta rule on slots"] = (CHUNKS - 2) / CHUNKS
    reader = sum(stage.training * share.get(name, 1) for name, stage in stages.items())
    reader += sum(
        stages[name].forward * share[name] for name in ("slots written", "delta rule on slots") if name in stages
    )
    reader -= 2 * CHUNK * CHUNK * mixer.heads if kind == "gated_deltanet" else 0  # triangular solves
    assert by_torch == pytest.approx(known + reader * config.layers, rel=1e-12)


def test_a_transformer_takes_what_its_parts_say():
    config = ModelConfig(vocab_size=120, hidden=24, layers=2, mixer=AttentionConfig(heads=4))
    work = model_work(config, WINDOW)
    # torch counts all T x T pairs, the formula those below the diagonal and on it.
    whole = work["softmax"].training * 2 * WINDOW / (WINDOW + 1)
    others = sum(part.training for name, part in work.items() if name != "softmax")
    assert counted(config) / WINDOW == pytest.approx(others + whole, rel=1e-12)


def test_a_model_without_mlps_takes_none():
    config = ModelConfig(vocab_size=120, hidden=24, layers=2, mixer=AttentionConfig(heads=4), mlp_ratio=None)
    work = model_work(config, WINDOW)
    assert "mlp" not in work
    whole = work["softmax"].training * 2 * WINDOW / (WINDOW + 1)
    others = sum(part.training for name, part in work.items() if name != "softmax")
    assert counted(config) / WINDOW == pytest.approx(others + whole, rel=1e-12)


def test_grouped_queries_take_less_to_project_and_as_much_to_read():
    config = ModelConfig(vocab_size=120, hidden=24, layers=2, mixer=AttentionConfig(heads=4, kv_heads=1))
    work = model_work(config, WINDOW)
    whole = work["softmax"].training * 2 * WINDOW / (WINDOW + 1)
    others = sum(part.training for name, part in work.items() if name != "softmax")
    assert counted(config) / WINDOW == pytest.approx(others + whole, rel=1e-12)


@pytest.mark.parametrize("window", [None, 1, 7, 64, 100])
def test_how_many_keys_a_token_reads(window):
    found = [min(t + 1, window or 64) for t in range(64)]
    assert keys_read(AttentionConfig(heads=4, window=window), 64) == pytest.approx(sum(found) / 64)


def test_a_hybrid_takes_what_its_blocks_take():
    linear = Mamba2Config(heads=4, head_dim=10, state_dim=6, memory=DynamicMemory(capacity=3))
    softmax = AttentionConfig(heads=4, kv_heads=2, window=16)
    sizes = {"vocab_size": 120, "hidden": 24}
    found = model_work(ModelConfig(layers=5, mixer=linear, hybrid=HybridConfig(every=2, mixer=softmax), **sizes), 64)
    parts = [
        model_work(ModelConfig(layers=3, mixer=linear, **sizes), 64),
        model_work(ModelConfig(layers=2, mixer=softmax, **sizes), 64),
    ]
    head = parts[0]["head"].training
    assert sum(work.training for work in found.values()) + head == pytest.approx(
        sum(work.training for part in parts for work in part.values())
    )
    assert found["softmax"] == parts[1]["softmax"]
    assert found["reader"] == parts[0]["reader"]


def test_the_delta_rule_is_counted_in_the_chunks_that_take_least():
    shape = {"heads": 6, "groups": 6, "key_dim": 192, "value_dim": 384, "slots": 30, "delta": True, "gate": True}
    by_chunk = {
        chunk: sum(stage.training for stage in reader_work_in_chunks(chunk, **shape).values())
        for chunk in (64, 128, 256, 512)
    }
    assert sum(stage.training for stage in reader_work(**shape).values()) == min(by_chunk.values())
    assert by_chunk[512] < by_chunk[64] / 2


def test_only_softmax_attention_grows_with_the_window():
    linear = load(find("mamba2-dla-780m")).recipe.model
    assert training_flops(linear, 16_384) == training_flops(linear, 131_072)
    softmax = load(find("transformer-780m")).recipe.model
    assert training_flops(softmax, 131_072) > 3 * training_flops(softmax, 16_384)
    assert "softmax" not in model_work(linear, 16_384)


def test_six_flops_per_parameter_are_most_of_it():
    """The known rule for what multiplies activations, at the size of the paper."""
    config = load(find("mamba2-780m")).recipe.model
    work = model_work(config, 16_384)
    matrices = sum(work[name].training for name in ("mixer projections", "mlp", "head"))
    embedding = config.vocab_size * config.hidden
    assert matrices == pytest.approx(6 * (802_225_872 - embedding), rel=2e-3)


@pytest.mark.parametrize(
    ("memory", "window", "slots"),
    [
        (SingleMemory(), 16_384, 1),
        (FixedMemory(block=512, capacity=32), 16_384, 32),
        (FixedMemory(block=512, capacity=32), 1_000, 2),
        (FenwickMemory(capacity=15), 16_384, 15),
        (FenwickMemory(capacity=15), 4_096, 13),
        (FenwickMemory(capacity=8), 16_384, 8),
        (DynamicMemory(capacity=30), 16_384, 30),
        (DynamicMemory(capacity=30), 8, 8),
    ],
)
def test_slots_that_a_window_can_fill(memory, window, slots):
    assert slots_in_window(memory, window) == slots
