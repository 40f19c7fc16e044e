"""Checkpoints of strategies that shard weights and optimizer states: each rank writes its part, and any number can read
them.

A checkpoint always holds what a single process would have written (`dla_train.checkpoints.shards`), so a run can
continue with another number of ranks or another strategy, and be exported without any strategy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from dla_train.checkpoints.shards import Scattered, Shard, read_part
from dla_train.checkpoints.state_file import read_state, write_shards


@dataclass(frozen=True, eq=False)
class Part:
    """What this rank holds of a parameter: a contiguous range of its elements.

    Attributes:
        name: of the parameter. shape: of the whole parameter. start: of the range in the parameter.
        weights: `[n]`, the range itself, a view; of the float32 master weights if there are any.
        owner: the tensor that the optimizer keeps states for, which `weights` is a part of. offset: of the range in
            `owner`.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weights: Tensor
    owner: Tensor
    offset: int

    def piece(self, index: int, count: int) -> Part:
        """The piece `index` of `count` pieces of nearly equal size that this part can be divided into."""
        first, last = (len(self.weights) * number // count for number in (index, index + 1))
        return replace(self, start=self.start + first, weights=self.weights[first:last], offset=self.offset + first)

    def cut(self, state: Tensor) -> Tensor:
        """This part's range of an optimizer state of `owner`: `[n]`, a view."""
        return local(state).view(-1)[self.offset : self.offset + len(self.weights)]


class ShardedState(ABC):
    """Mixin that saves and restores for a Lightning strategy; must precede the strategy among the base classes."""

    lightning_module: lightning.LightningModule
    optimizers: list[torch.optim.Optimizer]
    global_rank: int
    world_size: int

    @abstractmethod
    def parts(self) -> list[Part]:
        """One part of every parameter, empty if this rank holds nothing of it; the same names on all ranks."""

    def written(self) -> list[Part]:
        """What this rank writes of `parts`: over all ranks, each element once."""
        return self.parts()

    @abstractmethod
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose `state` has the owners of `parts` as keys."""

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups as they would be without a strategy, with names in `params`."""

    @abstractmethod
    def weights_changed(self) -> None:
        """Rebuild what is derived from `parts`, which were written to. To be called by all ranks."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """True: parts exist only after the setup."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning calls `load_optimizer_state_dict`."""
        return True

    def own_bytes(self) -> int:
        """Bytes that this rank writes, to within a few thousand."""
        size = 0
        state = self.torch_optimizer().state
        for part in self.written():
            values = [part.weights, *(part.cut(value) for value in state.get(part.owner, {}).values() if value.dim())]
            size += sum(value.numel() * value.element_size() for value in values)
        return size

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights as shards, and whole buffers; a tied weight is the same shard under both names."""
        names = _first_names(self.lightning_module)
        shards = {part.name: Shard(part.shape, part.start, part.weights) for part in self.written()}
        whole = dict(self.lightning_module.named_buffers())
        return {
            name: shards[names[name]] if name in names else whole[name] for name in _state_names(self.lightning_module)
        }

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Like `optimizer.state_dict()` of one process, with shards as tensors."""
        groups = self.groups()
        order = [name for group in groups for name in group["params"]]
        parts = {part.name: part for part in self.written()}
        states = self.torch_optimizer().state
        state: dict[int, dict[str, Any]] = {}
        for index, name in enumerate(order):
            part = parts[name]
            if part.owner in states:
                # The step count may be shared by many parameters here; once read again, each has its own.
                state[index] = {
                    key: Shard(part.shape, part.start, part.cut(value)) if value.dim() else value.clone()
                    for key, value in states[part.owner].items()
                }
        index_of = {name: index for index, name in enumerate(order)}
        listed = [{**group, "params": [index_of[name] for name in group["params"]]} for group in groups]
        return {"state": state, "param_groups": listed}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write this rank's files, without waiting for other ranks."""
        write_shards(checkpoint, Path(filepath), self.global_rank, self.world_size)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Open a checkpoint of any strategy and number of ranks."""
        return read_state(Path(checkpoint_path))

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Read the parts that this rank holds."""
        saved = checkpoint["state_dict"]
        for part in self.parts():
            part.weights.copy_(read_part(saved[part.name], part.start, len(part.weights)))
        for name, buffer in self.lightning_module.named_buffers():
            if name in saved:  # other buffers are not persistent: they are computed, not loaded
                buffer.copy_(saved[name])
        self.weights_changed()

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Read the optimizer states of the parts that this rank holds. Learning rates and other options stay those of
        the recipe."""
        saved = checkpoint["optimizer_states"][0]["state"]
        order = [name for group in self.groups() for name in group["params"]]
        parts = {part.name: part for part in self.parts()}
        state = self.torch_optimizer().state
        for index, name in enumerate(order):
            if index not in saved:  # every step so far was skipped
                continue
            part = parts[name]
            own = state[part.owner]
            for key, value in saved[index].items():
                if isinstance(value, Scattered) or value.dim():
                    if key not in own:
                        own[key] = torch.zeros_like(part.owner)
                    part.cut(own[key]).copy_(read_part(value, part.start, len(part.weights)))
                else:
                    own[key] = value.clone().to(part.owner.device)  # where a fused optimizer counts its steps


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; any other tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _first_names(module: torch.nn.Module) -> dict[str, str]:
    """The first name of each parameter, by each of its names."""
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(parameter), name)
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def _state_names(module: torch.nn.Module) -> list[str]:
    """The names in a module's `state_dict`, in its order."""
    return list(torch.nn.Module.state_dict(module))
