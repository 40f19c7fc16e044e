"""One of several ranks that share the windows of small models; `test_shared_windows.py` starts them.

Each compares what the ranks found together with what it finds alone, and prints the largest differences as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed

from dla_train.models import (
    AttentionConfig,
    DynamicMemory,
    FenwickMemory,
    FixedMemory,
    GatedDeltaNetConfig,
    HybridConfig,
    LanguageModel,
    Mamba2Config,
    MixerConfig,
    ModelConfig,
    SingleMemory,
    initialize,
)
from dla_train.models.context import ALONE, Context
from dla_train.models.memory import Dynamic

VOCAB, TOKENS = 31, 24
DYNAMIC = DynamicMemory(capacity=3, threshold=1.2, learn_threshold=True)
MIXERS: dict[str, MixerConfig] = {
    "mamba2, one group": Mamba2Config(heads=8, head_dim=4, state_dim=6, groups=1, memory=DYNAMIC),
    "mamba2, two groups": Mamba2Config(heads=8, head_dim=4, state_dim=6, groups=2, memory=FenwickMemory(capacity=4)),
    "mamba2, four groups": Mamba2Config(heads=4, head_dim=4, state_dim=6, groups=4, memory=DYNAMIC),
    "gated_deltanet": GatedDeltaNetConfig(heads=4, key_dim=4, value_dim=6, memory=DYNAMIC),
    "gated_deltanet, fixed": GatedDeltaNetConfig(
        heads=4, key_dim=4, value_dim=6, memory=FixedMemory(block=3, capacity=4)
    ),
    "gated_deltanet, single": GatedDeltaNetConfig(heads=4, key_dim=4, value_dim=6, memory=SingleMemory()),
    "mamba2, uneven": Mamba2Config(heads=7, head_dim=4, state_dim=6, groups=1, memory=DYNAMIC),
    "gated_deltanet, uneven": GatedDeltaNetConfig(heads=5, key_dim=4, value_dim=6, memory=DYNAMIC),
    "gated_deltanet, few": GatedDeltaNetConfig(heads=1, key_dim=4, value_dim=6, memory=FenwickMemory(capacity=3)),
    "attention": AttentionConfig(heads=4, kv_heads=2),
    "attention, uneven": AttentionConfig(heads=1, window=9),
    "attention, one key": AttentionConfig(heads=4, kv_heads=1, window=7),
}
MODELS = {name: ModelConfig(vocab_size=VOCAB, hidden=16, layers=2, mixer=mixer) for name, mixer in MIXERS.items()}
MODELS["hybrid, tied"] = replace(
    MODELS["gated_deltanet"],
    hybrid=HybridConfig(every=2, mixer=MIXERS["attention, one key"]),
    tie_embeddings=True,
    mlp_ratio=None,
)
IN_ALL_WAYS = ("mamba2, one group", "rows", 2)
"""Model, batch and number of ranks: compilation takes 10 s."""
WAYS: dict[str, Callable[[LanguageModel], None]] = {
    "plain": lambda model: None,
    "recomputed": lambda model: model.recompute_blocks(),
    "selective": lambda model: model.recompute_blocks(selective=True),
    "compiled": lambda model: model.compile_blocks("aot_eager"),
}


def batches() -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Inputs, targets and documents, by name."""
    tokens = torch.randint(VOCAB, (2, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    answers = tokens[:, 1:].clone()
    answers[:, : TOKENS - 5] = -100  # no rank but the last one has any
    return {
        "rows": (tokens[:, :-1], tokens[:, 1:], None),
        "answers": (tokens[:, :-1], answers, None),
        "documents": (tokens[:1, :-1], tokens[:1, 1:], torch.tensor([0, 5, 6, 17, TOKENS])),
    }


def model_of(name: str) -> LanguageModel:
    torch.manual_seed(0)
    model = initialize(LanguageModel(replace(MODELS[name], init_std=0.2)).double(), seed=0)
    for module in model.modules():
        if isinstance(module, Dynamic):
            with torch.no_grad():
                module.threshold += torch.linspace(-0.1, 0.1, len(module.threshold))  # another for each head
    return model


def step(model: LanguageModel, batch: tuple[Tensor, Tensor, Tensor | None], add_up: Any) -> dict[str, Tensor]:
    """Loss, logits, losses of tokens, and all gradients."""
    model.zero_grad()
    loss = model.loss(*batch, z_loss=1e-3)
    loss.backward()
    with torch.no_grad():
        logits, _ = model(batch[0], cu_seqlens=batch[2])
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    size = model.context.size
    found = {name: add_up(gradient) / size for name, gradient in {"loss": loss.detach(), **found}.items()}
    return {**found, "logits": logits, "token losses": model.token_losses(*batch)}


def main() -> None:
    """`rank, size, store` are the arguments."""
    rank, size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    assert distributed.group.WORLD is not None
    context = Context(size, rank, distributed.group.WORLD.group_name)

    def add_up(x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    differences: dict[str, float] = {}
    for name in MODELS:
        for kind, batch in batches().items():
            model = model_of(name)
            expected = step(model, batch, lambda x: x)
            for whole in ("logits", "token losses"):
                expected[whole] = context.slice_of(expected[whole])
            for way, prepare in WAYS.items():
                if way != "plain" and (name, kind, size) != IN_ALL_WAYS:
                    continue
                model = model_of(name)
                prepare(model)
                model.share_windows(context)
                found = step(model, batch, add_up)
                assert found.keys() == expected.keys()
                relative = [(found[key] - x).double().norm() / x.norm().clamp_min(1e-9) for key, x in expected.items()]
                differences[f"{name}, {kind}, {way}"] = torch.stack(relative).max().item()  # nan if any is
                model.share_windows(ALONE)
                assert torch.equal(model(batch[0])[0], model_of(name)(batch[0])[0]), "whole windows again"
    print(json.dumps(differences))
    distributed.destroy_process_group()
