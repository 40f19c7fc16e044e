"""One token of each sequence, where a cache is at hand and no gradient is wanted: decoding for a given plan.

On the CPU it is done here, on a GPU by decode/planned.py.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

from dla_kernels.cache import Cache
from dla_kernels.host_jobs import array_of, run_jobs
from dla_kernels.plan import Plan


def is_decoding(
    inputs: tuple[Tensor | None, ...], plan: Plan, cu_seqlens: Tensor | None, cache: Cache, dtype: torch.dtype
) -> bool:
    """Whether a call that continues `cache` is one token of each sequence, and no gradient is wanted.

    Args:
        inputs: q, k, v, slot_weight, log_decay, beta. dtype: that states are to have.
    """
    if cu_seqlens is not None or plan.shift.shape[1] != 1 or plan.shift.numel() == 0 or cache.state.dtype != dtype:
        return False
    watched = [*inputs, cache.state, plan.gate]
    return not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in watched))


def takes_token(plan: Plan) -> bool:
    """Whether `read_token` can do what `is_decoding` tells: on the CPU, with numba."""
    return plan.shift.device.type == "cpu" and importlib.util.find_spec("numba") is not None


def read_token(
    q: Tensor, k: Tensor, v: Tensor, slot_weight: Tensor, plan: Plan, log_decay: Tensor | None, beta: Tensor | None,
    cache: Cache,
) -> tuple[Tensor, Cache]:  # fmt: skip
    """The next token of N sequences: o `[N, 1, H, V]` in the states' type, and the cache after it.

    A cache that is `donated` gives its states to the new one. With plain decay, those that are only read stay as they
    are, and `Cache.lag` says by how much; any other cache is left unchanged, for the price of a copy.

    Args:
        q, k: `[N, 1, G, K]`, q scaled. v: `[N, 1, H, V]`. slot_weight: `[N, 1, H, M]`. log_decay, beta: `[N, 1, H]` or
            None. cache: of the sequences; its states have the type that they are to have.
    """
    from dla_kernels.reader import token_loop

    dtype = cache.state.dtype
    is_lazy = cache.is_donated and beta is None and dtype == torch.float32
    past = cache if is_lazy else cache.settled()
    state = past.state.contiguous()
    if not cache.is_donated and state.data_ptr() == cache.state.data_ptr():
        state = state.clone()
    lag = torch.zeros(*cache.age.shape, 2, dtype=torch.float32)
    if past.lag is not None:
        lag.copy_(past.lag)
    age = cache.age.to(torch.int32).clone(memory_format=torch.contiguous_format)
    shift = plan.shift[:, 0].to(torch.int32)
    decay = torch.zeros(shift.shape, dtype=torch.float64) if log_decay is None else log_decay[:, 0].double()
    factor = torch.zeros(shift.shape, dtype=dtype) if beta is None else beta[:, 0].to(dtype)
    o = np.empty(v.shape[:1] + v.shape[2:], np.float64 if dtype == torch.float64 else np.float32)
    token = [x[:, 0].to(dtype) for x in (q, k, v, slot_weight)]
    run_jobs(
        token_loop.read_token, shift.numel(), state.numel(), *map(array_of, (*token, shift, decay, factor)),
        plan.collapse, beta is not None, is_lazy, *map(array_of, (state, age, lag)), o,
    )  # fmt: skip
    after = Cache(
        state=state, age=age, tokens=cache.tokens + 1, segment=plan.final, lag=lag if is_lazy else None,
        is_donated=cache.is_donated,
    )  # fmt: skip
    return torch.from_numpy(o)[:, None], after
