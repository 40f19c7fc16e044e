# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Running sums over a chunk: of `[C, C]` numbers as products with a triangle of ones, of a vector as scans.

A scan over `[C, C]` numbers goes from lane to lane, which takes several hundred warp shuffles. A product needs none,
and adds no rounding: a float32 is the sum of three numbers of eight bits, which tensor cores take exactly, and sums are
float32 either way.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def eight_bits(x):
    """The first eight significant bits of float32 numbers, as bfloat16 holds them. Taking them off once leaves 16 bits,
    taking them off again eight."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def three_parts(x):
    """Three float32 numbers of eight significant bits each, whose sum is x."""
    high = eight_bits(x)
    middle = eight_bits(x - high)
    return high, middle, x - high - middle


@triton.jit
def sums_from(x, C: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr):
    """`[p, t]`: the sum of `x[j, t]` over j >= p; x `[C, C]` float32, PART bfloat16 or float32."""
    row = tl.arange(0, C)
    later = (row[:, None] <= row[None, :]).to(PART)
    high, middle, low = three_parts(x)
    out = tl.dot(later, low.to(PART), input_precision=PRECISION)
    out = tl.dot(later, middle.to(PART), out, input_precision=PRECISION)
    return tl.dot(later, high.to(PART), out, input_precision=PRECISION)


@triton.jit
def sums_before(x, C: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr):
    """`[p, t]`: the sum of `x[p, u]` over u < t; types as in `sums_from`."""
    row = tl.arange(0, C)
    earlier = (row[:, None] < row[None, :]).to(PART)
    high, middle, low = three_parts(x)
    out = tl.dot(low.to(PART), earlier, input_precision=PRECISION)
    out = tl.dot(middle.to(PART), earlier, out, input_precision=PRECISION)
    return tl.dot(high.to(PART), earlier, out, input_precision=PRECISION)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def add_unless_begun(begins, x, other_begins, other):
    return begins | other_begins, tl.where(other_begins > 0, other, x + other)


@triton.jit
def sums_of_segments(begins, x):
    """For each number of x: the sum from the last beginning (1 in `begins`, int32) up to and including it."""
    return tl.associative_scan((begins, x), 0, add_unless_begun)[1]
