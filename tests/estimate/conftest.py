"""What a forward pass leaves in memory."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dla_train.models import LanguageModel, ModelConfig, context, initialize
from dla_train.models.context import Context


class Live(TorchDispatchMode):
    """All storages that operations have made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return made

    def bytes(self, besides: set[int]) -> int:
        """Of those that are alive, without `besides`."""
        alive = {key: size for key, (storage, size) in self.storages.items() if not storage.expired()}
        return sum(size for key, size in alive.items() if key not in besides)


@pytest.fixture(scope="session")
def found_bytes() -> Callable[..., tuple[int, int]]:
    """`found_bytes(config, batch, window, precision, recompute_every=None, selective=False, shared=1)`: of all storages
    that a forward pass leaves alive for the backward, parameters left out; while autocast is still on, and after."""
    return _found_bytes


def _found_bytes(
    config: ModelConfig,
    batch: int,
    window: int,
    precision: str,
    recompute_every: int | None = None,
    selective: bool = False,
    shared: int = 1,
) -> tuple[int, int]:
    model = initialize(LanguageModel(config), seed=0)
    if precision == "bf16-true":
        model.to(torch.bfloat16)
    if recompute_every is not None:
        model.recompute_blocks(recompute_every, selective=selective)
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    tokens = torch.randint(0, config.vocab_size, (batch, window + 1), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    ids = inputs.nbytes + targets.nbytes
    if shared > 1:
        model.share_windows(Context(shared, 0, "a group that is not there"))
    with patch.object(context, "_all_to_all", lambda x, group: x.contiguous().clone()), Live() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = model.loss(inputs, targets)
            within = live.bytes(parameters)
        after = live.bytes(parameters)
    assert loss.requires_grad
    return within + ids, after + ids
