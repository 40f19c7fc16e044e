"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter


class MuonWithAdamW(torch.optim.Optimizer):
    """PyTorch's Muon and AdamW side by side, with one state dict and one learning rate for both.

    Muon (Jordan et al., 2024) moves a matrix along the orthogonalised momentum of its gradient. Its rate is scaled by
    `0.2 sqrt(max(rows, columns))`, which gives its steps the size of AdamW's (arXiv 2502.16982), so that a rate found
    for one suits the other.

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
        self._muon = torch.optim.Muon(
            list(matrices), lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a state dict replaces groups and state of this object: hand over what holds now.
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state
        self._muon.step()
        self._adamw.step()
        return loss
