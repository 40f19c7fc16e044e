"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

# Coefficients of the quintic that pushes singular values towards 1 (Jordan et al., 2024). It is steep at zero, so that
# five rounds are enough for small ones, too; the results lie between about 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_SMALLEST_NORM = 1e-7


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and PyTorch's AdamW side by side, with one state dict and one learning rate for both.

    Muon (Jordan et al., 2024) moves a matrix along the orthogonalized Nesterov momentum of its gradient. Its rate is
    scaled by `0.2 sqrt(max(rows, columns))`, which gives its steps the size of AdamW's (arXiv 2502.16982), so that a
    rate found for one suits the other. `torch.optim.Muon` does the same, but always in bfloat16: on a CPU without
    bfloat16 instructions that takes several times as long as the rest of a small model's step. State and groups have
    the same names as there.

    Args:
        matrices: 2-D weights inside the blocks.
        others: parameter groups for AdamW: embedding, head, norms, biases, convolutions, scales.
        lr: peak rate of both. momentum: of Muon. weight_decay: of the matrices; the other groups carry their own.
        betas, eps: of AdamW.
    Raises:
        ValueError: a matrix that is not 2-D.
    """

    def __init__(
        self,
        matrices: Iterable[Parameter],
        others: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        params = list(matrices)
        for matrix in params:
            if matrix.ndim != 2:
                raise ValueError(
                    f"Muon moves matrices, not parameters of shape {tuple(matrix.shape)}: give it to AdamW."
                )
        apart = [parameter for group in others for parameter in group["params"]]
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, fused=can_be_fused(apart))
        muon = {"params": params, "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([muon, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_matrices(self.param_groups[0])
        # Loading a state dict replaces this object's groups and state, so AdamW is given the current ones.
        self._adamw.param_groups, self._adamw.state = self.param_groups[1:], self.state
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            average = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
            update = orthogonalized(matrix.grad.lerp(average, momentum))
            matrix.mul_(1 - lr * group["weight_decay"])
            matrix.add_(update, alpha=-0.2 * math.sqrt(max(matrix.shape)) * lr)


def can_be_fused(parameters: Iterable[Parameter]) -> bool:
    """Whether PyTorch has AdamW as one kernel for all of them: it reads and writes each number once, where its other
    ways make about three times as many passes and a copy of all second moments."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)


def orthogonalized(matrix: Tensor) -> Tensor:
    """`matrix` with its singular values brought to about 1: Newton-Schulz rounds of a quintic (Jordan et al., 2024).

    `[rows, columns]` -> the same shape and type. Computed in bfloat16 on a GPU, which is accurate enough and runs on
    tensor cores, and in float32 on a CPU.
    """
    x = matrix.float() if matrix.device.type == "cpu" else matrix.bfloat16()
    wide = x if matrix.shape[0] <= matrix.shape[1] else x.T
    wide = wide / wide.norm().clamp(min=_SMALLEST_NORM)  # no singular value above 1
    # Columns of zeros stay zeros. Tensor cores are fed at full speed if rows begin at multiples of 16 bytes.
    columns = wide.shape[1]
    if columns % 8 and not isinstance(wide, DTensor):  # one that ranks share would be divided otherwise
        wide = F.pad(wide, (0, -columns % 8))
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    wide = wide[:, :columns]
    return (wide if matrix.shape[0] <= matrix.shape[1] else wide.T).to(matrix.dtype)
