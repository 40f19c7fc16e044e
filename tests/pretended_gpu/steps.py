"""Steps of shipped recipes on the pretended GPU, and what was seen in them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_map_only

from dla_kernels.documents import cu_seqlens_of
from dla_kernels.reader.fused import pieces
from dla_kernels.sending import sent
from dla_train.callbacks.memory_watch import MemoryWatch
from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.config.recipe import Recipe
from dla_train.distributed.fsdp_strategy import device_mesh, shard
from dla_train.estimate.activations import Setting
from dla_train.estimate.footprint import footprint
from dla_train.models import LanguageModel, document_attention
from dla_train.models.steering import ThresholdSteering
from dla_train.training.gradient_norm import gradient_norm
from dla_train.training.optimizers import build_optimizer
from tests.kernels.peak_memory import PeakMemory, no_launches
from tests.operator_calls import Calls
from tests.pretended_gpu.ranks import PeakOfShards, rank_0_of
from tests.pretended_gpu.slow import Slow

GPU = torch.device("cuda")


def train(name: str, settings: Sequence[str], documents: bool, renewed: bool = False) -> dict[str, object]:
    """A step with all that looks on: what is slow, the operators by number, and parameters without gradient.

    renewed: modules get new tensors in place of those given by place, as with ZeRO 3.
    """
    recipe = _recipe(name, settings)
    with _fake():
        model = _model(recipe)
        optimizer = build_optimizer(recipe.optimizer, model)
        watch, steering = MemoryWatch(model), ThresholdSteering(model, rate=0.1, part=0.1)
        watch.is_active = steering.is_active = True
        if renewed:
            for module in model.modules():
                module.register_forward_pre_hook(_renewing)
        with Slow() as slow, Calls() as calls:
            tokens, cu_seqlens = _batch(documents)
            with _autocast(recipe):
                loss = model.loss(tokens, tokens, cu_seqlens, z_loss=1e-4)
            watch.is_active = steering.is_active = False
            loss.backward()
            parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
            norm = gradient_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
            optimizer.step()
            steering.move()
        without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    return {"slow": slow.found, "calls": calls.number, "without gradient": without}


def _renewing(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.view_as(x) if isinstance(x, Tensor) else x for x in inputs)


def validate(name: str, settings: Sequence[str], documents: bool) -> dict[str, object]:
    """A batch of a validation, likewise."""
    recipe = _recipe(name, settings)
    with _fake():
        model = _model(recipe)
        watch = MemoryWatch(model)
        watch.is_active = True
        with Slow() as slow, Calls() as calls, torch.inference_mode(), _autocast(recipe):
            tokens, cu_seqlens = _batch(documents)
            model.loss(tokens, tokens, cu_seqlens)
    return {"slow": slow.found, "calls": calls.number}


def generate(name: str, settings: Sequence[str]) -> dict[str, object]:
    """A prompt and two tokens more, likewise."""
    recipe = _recipe(name, settings)
    with _fake(), torch.no_grad():
        model = _model(recipe)
        with Slow() as slow, Calls() as calls:
            tokens = torch.zeros(2, 70, dtype=torch.int64, device=GPU)
            cache = None
            for _ in range(3):
                past = None if cache is None else cache.donated()
                hidden, cache = model.hidden_states(tokens, cache=past, return_cache=True)
                tokens = model.head(hidden[:, -1]).argmax(-1)[:, None]
    return {"slow": slow.found, "calls": calls.number}


def peak(name: str, settings: Sequence[str], window: int) -> dict[str, object]:
    """The most bytes at any time of a step's second micro-batch, and what is estimated."""
    recipe = _recipe(name, settings)
    with _fake(), PeakMemory("cuda") as held:
        _second_micro_batch(recipe, _model(recipe), window, held)
    return {"found": held.bytes, "estimated": _estimated(recipe, window, 1)}


def sharded_peak(name: str, settings: Sequence[str], window: int, ranks: int) -> dict[str, object]:
    """The same for a rank of several with FSDP."""
    recipe = _recipe(name, [*settings, "strategy=fsdp"])
    with rank_0_of(ranks):
        mesh = device_mesh("cuda", 1, ranks)
        with _fake(), PeakOfShards("cuda") as held, held.knowing_gathered_weights():
            model = _model(recipe, torch.device("meta"))
            shard(model, mesh, reshard_after_forward=True)
            _second_micro_batch(recipe, model.to_empty(device=GPU), window, held)
    return {"found": held.bytes, "estimated": _estimated(recipe, window, ranks)}


def _second_micro_batch(recipe: Recipe, model: LanguageModel, window: int, held: PeakMemory) -> None:
    optimizer = build_optimizer(recipe.optimizer, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes its states
    held.bytes = 0
    tokens = torch.zeros(1, window, dtype=torch.int64, device=GPU)
    with _autocast(recipe):
        loss = model.loss(tokens, tokens)
    loss.backward()


def _estimated(recipe: Recipe, window: int, ranks: int) -> int:
    with torch.device("meta"):
        outline = LanguageModel(recipe.model)
    setting = Setting(
        batch=1,
        window=window,
        precision=recipe.training.precision,
        path="triton",
        is_gpu=True,
        recompute_every=recipe.training.recompute_every,
        selective=recipe.training.recompute_selectively,
    )
    return footprint(recipe, outline, ranks, setting).total


def _recipe(name: str, settings: Sequence[str]) -> Recipe:
    return load(find(name), settings).recipe


def _model(recipe: Recipe, device: torch.device = GPU) -> LanguageModel:
    default, training = torch.get_default_dtype(), recipe.training
    torch.set_default_dtype(torch.bfloat16 if training.precision == "bf16-true" else default)
    try:
        with device:
            model = LanguageModel(recipe.model)
    finally:
        torch.set_default_dtype(default)
    if training.recompute_every is not None:
        model.recompute_blocks(training.recompute_every, selective=training.recompute_selectively)
    return model


def _batch(documents: bool) -> tuple[Tensor, Tensor | None]:
    tokens = torch.zeros(1 if documents else 2, 1200, dtype=torch.int64, device=GPU)
    return tokens, cu_seqlens_of((0, 5, 100, 1200), GPU) if documents else None


def _autocast(recipe: Recipe) -> contextlib.AbstractContextManager[object]:
    mixed = recipe.training.precision == "bf16-mixed"
    return torch.autocast("cuda", torch.bfloat16) if mixed else contextlib.nullcontext()


@contextlib.contextmanager
def _fake() -> Iterator[None]:
    """Fake tensors, except for the numbers that the host computes of documents, and launches that do nothing."""

    def with_numbers_of_the_host(module: ModuleType, name: str) -> contextlib.AbstractContextManager[object]:
        compute = getattr(module, name)

        def computed(*arguments: Any) -> Any:
            with unset_fake_temporarily():
                found = compute(*arguments[:-1], torch.device("cpu"))
            fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
            there = tree_map_only(Tensor, lambda x: sent(mode.from_tensor(x), arguments[-1]), fields)
            return type(found)(**there)

        return patch.object(module, name, computed)

    with (
        FakeTensorMode() as mode,
        no_launches(),
        with_numbers_of_the_host(document_attention, "_groups"),
        with_numbers_of_the_host(pieces, "_pieces"),
    ):
        yield
