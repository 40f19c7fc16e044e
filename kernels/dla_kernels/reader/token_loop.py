"""One token of the recurrence as a compiled loop over the states, on the host: what decoding on the CPU waits for.

Every state is read once, and only those that change are written. Slots stay where they are and change their age, as in
decode/. The equations are those of naive.py.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np


@numba.njit(cache=True, inline="always")
def _slot_of_age(age: Any, wanted: Any) -> Any:
    for p in range(age.shape[0]):
        if age[p] == wanted:
            return p
    return 0


@numba.njit(cache=True, inline="always")
def _merge(state: Any, into: Any, other: Any, factor: Any) -> None:
    """Adds slot `other` to slot `into`, each times the decay that it lags behind, and empties it."""
    a, b = factor[into], factor[other]
    one = state.dtype.type(1)
    for i in range(state.shape[1]):
        for j in range(state.shape[2]):
            state[into, i, j] = a * state[into, i, j] + b * state[other, i, j]
            state[other, i, j] = state.dtype.type(0)
    factor[into] = one
    factor[other] = one


@numba.njit(cache=True, nogil=True)
def read_token(
    first_job: int, last_job: int, q: Any, k: Any, v: Any, weight: Any, shift: Any, log_decay: Any, beta: Any,
    collapse: bool, delta: bool, lazy: bool, state: Any, age: Any, lag: Any, o: Any,
) -> None:  # fmt: skip
    """Writes and reads one token of each sequence; job `n H + h` is head h of sequence n.

    Args:
        first_job, last_job: the jobs to do, `last_job` exclusive.
        q, k: `[N, G, K]`, q scaled. v: `[N, H, V]`. weight: `[N, H, M]` by age. shift: `[N, H]` int32, see `Plan`.
        log_decay: `[N, H]` float64. beta: `[N, H]`, used if `delta`. collapse: see `Plan`.
        lazy: do not write the states that are only read, but note in `lag` how far they lag behind (plain decay).
        state: `[N, H, M, K, V]`, age: `[N, H, M]` int32, lag: `[N, H, M, 2]` float32: of the cache; changed in place.
        o: `[N, H, V]`: written. All but the named types are of the states' type.
    """
    heads, slots = state.shape[1], state.shape[2]
    per_group = heads // k.shape[1]
    keys, values = state.shape[3], state.shape[4]
    factor = np.empty(slots, state.dtype)
    at = np.empty(slots, np.int64)
    written = np.empty(values, state.dtype)
    read = np.empty(values, state.dtype)
    zero = state.dtype.type(0)
    for job in range(first_job, last_job):
        n = job // heads
        h = job % heads
        s, a, behind, out = state[n, h], age[n, h], lag[n, h], o[n, h]
        qt, kt, vt = q[n, h // per_group], k[n, h // per_group], v[n, h]
        for p in range(slots):
            if lazy:
                # The sum may run over very many steps: what rounding takes is kept and added at the next one (Kahan).
                added = behind[p, 1] + np.float32(log_decay[n, h])
                total = behind[p, 0] + added
                behind[p, 1] = added - (total - behind[p, 0])
                behind[p, 0] = total
                factor[p] = math.exp(total)
            else:
                factor[p] = math.exp(log_decay[n, h])

        # which slots meet, and which one the token opens
        move = shift[n, h]
        if move >= 0 and collapse:
            target = min(move + 1, slots - 1)
            into = _slot_of_age(a, target)
            for p in range(slots):
                if a[p] < target:
                    _merge(s, into, p, factor)
                    behind[p, :] = np.float32(0)
            behind[into, :] = np.float32(0)
        elif move >= 0 and slots > 1:
            if move < slots - 1:
                freed, into = _slot_of_age(a, move), _slot_of_age(a, move + 1)
            else:  # there is room: the slot of the highest age holds nothing (else the oldest two are added)
                freed, into = _slot_of_age(a, slots - 1), _slot_of_age(a, slots - 2)
            _merge(s, into, freed, factor)
            behind[into, :] = np.float32(0)
            limit = a[freed]
            for p in range(slots):
                if p == freed:
                    a[p] = 0
                elif a[p] < limit:
                    a[p] += 1

        for j in range(values):
            out[j] = zero
        own = zero
        for i in range(keys):
            own += qt[i] * kt[i]
        for p in range(slots):
            at[a[p]] = p
        for how_old in range(slots):  # in this order wherever slots lie, so that sums are the same
            p = at[how_old]
            f, w = factor[p], weight[n, h, how_old]
            if delta:
                # b = beta (v - S^T k), the row that the transition and the write add to S for each key
                for j in range(values):
                    written[j] = zero
                    read[j] = zero
                for i in range(keys):
                    for j in range(values):
                        written[j] += kt[i] * s[p, i, j]
                        read[j] += qt[i] * s[p, i, j]
                for j in range(values):
                    fresh = vt[j] if how_old == 0 else zero
                    written[j] = beta[n, h] * (fresh - f * written[j])
                    out[j] += w * (f * read[j] + own * written[j])
                for i in range(keys):
                    for j in range(values):
                        s[p, i, j] = f * s[p, i, j] + kt[i] * written[j]
                continue
            if how_old == 0:
                for i in range(keys):
                    for j in range(values):
                        s[p, i, j] = f * s[p, i, j] + kt[i] * vt[j]
                behind[p, :] = np.float32(0)
                f = state.dtype.type(1)
            elif not lazy:
                for i in range(keys):
                    for j in range(values):
                        s[p, i, j] *= f
                f = state.dtype.type(1)
            for i in range(keys):
                c = w * f * qt[i]
                for j in range(values):
                    out[j] += c * s[p, i, j]
