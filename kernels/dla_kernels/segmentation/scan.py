"""The segmentation as one compiled pass over the tokens, on the host: the CPU's fast path.

A scan over scalars cannot be vectorized over time, and a Python loop over T would take longer than everything else in
the model. So numba compiles it, and it releases the interpreter lock, so that several (sequence, head) pairs can be
scanned at once. It keeps the open segment's sum `S` (K x V, small enough for the first-level cache) and uses
`I_t = sqrt(2 - 2 cos)`, `cos = k_t^T S v_t / (|k_t| |v_t| |S|)`, which is eq. 13 (kernels' README.md, "The method").
`|S|^2` grows by `2 k_t^T S v_t + |k_t|^2 |v_t|^2` with each token that joins.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

ORTHOGONAL = math.sqrt(2.0)
SMALLEST_SCORE = 1e-3
"""`dI/dcos = -1/I` has a pole at I = 0, where a token repeats the open segment; below this score the slope stays
constant."""

_SUMS = {"contract", "reassoc", "nsz"}
"""Floating-point freedoms that let the inner sums be vectorized; unlike full fast-math, NaN and infinity keep their
meaning."""


@numba.njit(fastmath=_SUMS, cache=True, inline="always")
def _bilinear(k: Any, s: Any, v: Any) -> Any:
    """`k^T S v`, float32 sums over V, float64 over K."""
    total = 0.0
    for i in range(k.shape[0]):
        row = np.float32(0.0)
        for j in range(v.shape[0]):
            row += s[i, j] * v[j]
        total += k[i] * row
    return total


@numba.njit(fastmath=_SUMS, cache=True, inline="always")
def _square(x: Any) -> Any:
    total = np.float32(0.0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return np.float64(total)


@numba.njit(cache=True, inline="always")
def _open(s: Any, k: Any, v: Any, keep: Any) -> None:
    """`S <- k v^T`, or `S + k v^T` where the token joins."""
    if keep:
        for i in range(k.shape[0]):
            for j in range(v.shape[0]):
                s[i, j] += k[i] * v[j]
    else:
        for i in range(k.shape[0]):
            for j in range(v.shape[0]):
                s[i, j] = k[i] * v[j]


@numba.njit(cache=True, inline="always")
def _merge_age(score_sum: Any, count: Any) -> Any:
    """Eq. 16: the age of the younger member of the sparsest adjacent pair; ties go to the oldest."""
    best = 0
    lowest = np.float32(np.inf)
    for a in range(score_sum.shape[0] - 2, -1, -1):
        density = (score_sum[a] + score_sum[a + 1]) / np.float32(count[a] + count[a + 1])
        if density < lowest:
            lowest = density
            best = a
    return best


@numba.njit(cache=True, nogil=True)
def segment_scan(
    first_job: int, last_job: int, k: Any, v: Any, row: Any, begin: Any, end: Any, threshold: Any, open_sum: Any,
        score_sum: Any, count: Any,
    shift: Any, score: Any,
) -> None:  # fmt: skip
    """Segments sequence n = tokens `begin[n]:end[n]` of row `row[n]`; job `n H + h` is its head h.

    Args:
        first_job, last_job: the jobs to do, `last_job` exclusive.
        k, v: `[B, T, G, K]`, `[B, T, H, V]` float32. threshold: `[H]` float32.
        open_sum, score_sum, count: the past of each sequence, as in `SegmentState`; replaced by the state at the end.
        shift, score: `[B, T, H]` int32, float32: written.
    """
    heads = v.shape[2]
    per_group = heads // k.shape[2]
    capacity = count.shape[2]
    for job in range(first_job, last_job):
        n = job // heads
        h = job % heads
        b = row[n]
        s, sums, tokens = open_sum[n, h], score_sum[n, h], count[n, h]
        used = 0
        for a in range(capacity):
            used += tokens[a] > 0
        norm = 0.0
        for i in range(s.shape[0]):
            norm += _square(s[i])
        for t in range(begin[n], end[n]):
            kt, vt = k[b, t, h // per_group], v[b, t, h]
            own = _square(kt) * _square(vt)
            first = used == 0
            dot = 0.0
            information = np.float32(0.0)
            if not first:
                dot = _bilinear(kt, s, vt)
                information = np.float32(ORTHOGONAL)
                if own > 0.0 and norm > 0.0:
                    information = np.float32(math.sqrt(max(0.0, 2.0 - 2.0 * dot / math.sqrt(own * norm))))
            opens = capacity > 1 and (first or information >= threshold[h])
            move = -1
            if opens:
                if used == capacity:
                    move = _merge_age(sums, tokens)
                    sums[move + 1] += sums[move]
                    tokens[move + 1] += tokens[move]
                    last = move
                else:
                    move = capacity
                    last = used
                    used += 1
                for a in range(last, 0, -1):
                    sums[a] = sums[a - 1]
                    tokens[a] = tokens[a - 1]
                sums[0] = np.float32(0.0)
                tokens[0] = 0
                norm = own
            else:
                used = max(used, 1)
                norm += 2.0 * dot + own
            _open(s, kt, vt, not opens)
            sums[0] += information
            tokens[0] += 1
            shift[b, t, h] = move
            score[b, t, h] = information


@numba.njit(cache=True, nogil=True)
def score_gradient(
    first_job: int, last_job: int, k: Any, v: Any, row: Any, begin: Any, end: Any, open_sum: Any, shift: Any,
    score: Any, dscore: Any, dk: Any, dv: Any,
) -> None:  # fmt: skip
    """The gradients `dk_t`, `dv_t` of `sum_t dscore_t I_t`, where the open segment counts as constant.

    `dI/dk = -(S v / (|k| |v| |S|) - cos k / |k|^2) / I`, and the same for v with `S^T k`.

    Args:
        first_job, last_job, k, v, row, begin, end: as in `segment_scan`. open_sum: the past; overwritten. shift, score:
            what `segment_scan` wrote.
        dscore: `[B, T, H]` float32, zero at first tokens. dk: `[B, T, H, K]`, per value head; dv: `[B, T, H, V]`:
            written.
    """
    heads = v.shape[2]
    per_group = heads // k.shape[2]
    for job in range(first_job, last_job):
        n = job // heads
        h = job % heads
        b = row[n]
        s = open_sum[n, h]
        norm = 0.0
        for i in range(s.shape[0]):
            norm += _square(s[i])
        for t in range(begin[n], end[n]):
            kt, vt = k[b, t, h // per_group], v[b, t, h]
            k2, v2 = _square(kt), _square(vt)
            cosine = 1.0 - 0.5 * score[b, t, h] * score[b, t, h]
            dkt, dvt = dk[b, t, h], dv[b, t, h]
            dkt[:] = 0.0
            dvt[:] = 0.0
            if dscore[b, t, h] != 0.0 and k2 > 0.0 and v2 > 0.0 and norm > 0.0:
                scale = 1.0 / math.sqrt(k2 * v2 * norm)
                slope = -dscore[b, t, h] / max(score[b, t, h], np.float32(SMALLEST_SCORE))
                _add_gradient(s, kt, vt, np.float32(slope * scale), dkt, dvt)
                for i in range(kt.shape[0]):
                    dkt[i] -= np.float32(slope * cosine / k2) * kt[i]
                for j in range(vt.shape[0]):
                    dvt[j] -= np.float32(slope * cosine / v2) * vt[j]
            joins = shift[b, t, h] == -1
            if joins:
                norm += 2.0 * cosine * math.sqrt(k2 * v2 * norm) + k2 * v2
            else:
                norm = k2 * v2
            _open(s, kt, vt, joins)


@numba.njit(fastmath=_SUMS, cache=True, inline="always")
def _add_gradient(s: Any, k: Any, v: Any, scale: Any, dk: Any, dv: Any) -> None:
    """`dk += scale S v`, `dv += scale S^T k`."""
    for i in range(k.shape[0]):
        row = np.float32(0.0)
        ki = scale * k[i]
        for j in range(v.shape[0]):
            row += s[i, j] * v[j]
            dv[j] += ki * s[i, j]
        dk[i] += scale * row
