"""Cross-entropy of a linear head without ever holding all logits.

The logits of 16,384 tokens over 32,000 entries take 2.1 GB in float32, and their gradient as much again. Here the
forward pass computes the logits of a few rows at a time, turns them into their gradient and uses that at once. The loss
is a scalar, so its gradient is known up to one factor, and the backward pass only multiplies by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dla_kernels.layers.precision import at_least_float32
from dla_train.models.product_type import product_type

IGNORED = -100
"""A target that does not count, as in `torch.nn.functional.cross_entropy`."""
ROWS = 1024
"""Tokens whose logits exist at one time: 131 MB of float32 at a vocabulary of 32,000."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, rows: int = ROWS, z_loss: float = 0.0
) -> Tensor:
    """Mean negative log-likelihood of `targets` under `softmax(hidden @ weight^T)`, differentiable once.

    Args:
        hidden: `[..., hidden]`. weight: `[vocab, hidden]`.
        targets: `[...]` int64; `IGNORED` (-100) leaves a position out of the mean.
        rows: positions worked on at one time.
        z_loss: the gradient is that of the result plus `z_loss` times the mean of `logsumexp(logits)^2`, which keeps
            the logits from drifting. The result itself stays the pure negative log-likelihood.
    Returns:
        a scalar in nats, float32 or wider; nan if no position counts.
    """
    _check(hidden, targets)
    if not torch.is_grad_enabled():  # else the forward pass would compute gradients for whatever requires them
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten(), rows, z_loss)  # type: ignore[return-value]


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, *, rows: int = ROWS) -> Tensor:
    """The negative log-likelihood of every target, without gradient. Arguments as `linear_cross_entropy`.

    Returns:
        the shape of `targets`, in nats, float32 or wider; 0 where the target is `IGNORED`.
    """
    _check(hidden, targets)
    rows_of_hidden, weight = _operands(hidden.flatten(0, -2), weight)
    with torch.autocast(hidden.device.type, enabled=False):
        parts = [loss for _, _, loss in _chunks(rows_of_hidden, weight, targets.flatten(), rows)]
    return torch.cat(parts).view(targets.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    """loss = mean_t (logsumexp(W h_t) - W[y_t] h_t);   dlogits_t = (softmax(W h_t) - onehot(y_t)) dloss / count.

    With a z-loss of weight c, dlogits_t also has `2 c logsumexp(W h_t) softmax(W h_t) dloss / count`.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, z_loss: float) -> Tensor:
        count = (targets != IGNORED).sum()
        needs_dhidden, needs_dweight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if needs_dhidden else None
        dweight = torch.zeros_like(weight, dtype=at_least_float32(weight).dtype) if needs_dweight else None
        total = torch.zeros((), dtype=at_least_float32(hidden).dtype, device=hidden.device)
        h, w = _operands(hidden, weight)
        with torch.autocast(hidden.device.type, enabled=False):
            for part, logits, loss in _chunks(h, w, targets, rows):
                total += loss.sum()
                if not (needs_dhidden or needs_dweight):
                    continue
                dlogits = _logits_gradient(logits, targets[part], z_loss).to(h.dtype)
                if dhidden is not None:
                    dhidden[part] = dlogits @ w  # [R, vocab] @ [vocab, hidden]
                if dweight is not None:
                    dweight += dlogits.t() @ h[part]  # [vocab, R] @ [R, hidden]
        # Divided before the cast, because the sum over all tokens may exceed the range of a 16-bit type.
        ctx.save_for_backward(dhidden, None if dweight is None else (dweight / count).to(weight.dtype), count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        dhidden, dweight, count = ctx.saved_tensors
        dhidden = None if dhidden is None else _scaled(dhidden, dloss / count)
        dweight = None if dweight is None else _scaled(dweight, dloss)
        return dhidden, dweight, None, None, None


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """`gradient * factor` in the type of the gradient, with a factor that is not rounded to it."""
    return torch.mul(gradient, factor[None], out=torch.empty_like(gradient))


def _operands(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the type of the matrix products."""
    dtype = product_type(hidden)
    return hidden.to(dtype), weight.to(dtype)


def _chunks(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For `rows` positions at a time: where they are, their logits `[R, vocab]` and their losses `[R]`, both wide."""
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        logits = at_least_float32(hidden[part] @ weight.t())  # [R, hidden] @ [hidden, vocab]
        counts = targets[part] != IGNORED
        picked = logits.gather(1, targets[part].where(counts, 0)[:, None])[:, 0]
        yield part, logits, (logits.logsumexp(1) - picked).where(counts, 0.0)


def _logits_gradient(logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    """`softmax (1 + 2 z_loss logsumexp) - onehot` `[R, vocab]`, zero where the target does not count."""
    counts = targets != IGNORED
    gradient = torch.softmax(logits, 1)
    if z_loss:
        gradient.mul_(1 + 2 * z_loss * logits.logsumexp(1, keepdim=True))
    gradient.scatter_add_(1, targets.where(counts, 0)[:, None], -torch.ones_like(gradient[:, :1]))
    return gradient.mul_(counts[:, None])


def _check(hidden: Tensor, targets: Tensor) -> None:
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)}; it must be that of the tokens, {tuple(hidden.shape[:-1])}"
        )
