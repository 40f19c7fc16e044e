"""What autograd keeps in a forward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dla_train.models import LanguageModel, ModelConfig, initialize


@pytest.fixture(scope="session")
def found_bytes() -> Callable[..., int]:
    """`found_bytes(config, batch, window, precision, recompute_every=None)`: of all storages saved for the backward."""
    return _found_bytes


def _found_bytes(
    config: ModelConfig, batch: int, window: int, precision: str, recompute_every: int | None = None
) -> int:
    """Bytes of all storages that are saved in a forward pass, parameters left out, those of our own functions too."""
    model = initialize(LanguageModel(config), seed=0)
    if precision == "bf16-true":
        model.to(torch.bfloat16)
    if recompute_every is not None:
        model.recompute_blocks(recompute_every)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # kept alive, or an address could come twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.randint(0, config.vocab_size, (batch, window + 1), generator=torch.Generator().manual_seed(0))
    is_mixed = precision == "bf16-mixed"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=is_mixed),
    ):
        model.loss(tokens[:, :-1], tokens[:, 1:])
    return sum(storage.nbytes() for storage in storages.values())
