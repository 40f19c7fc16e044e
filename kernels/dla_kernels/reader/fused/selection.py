# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Products of a 0/1 matrix, which select and add up: nothing is lost, even where tensor cores round float32 to tf32.

They do where "tf32" is asked, and on Blackwell also where it is not: there Triton takes a factor for narrow if anything narrow went
into it, be it the bytes of an age table (its issue 10176). So a float32 factor goes in as two of tf32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def select_columns(x, member, PRECISION: tl.constexpr):
    """`x member`, `[R, M] @ [M, N]`, of a 0/1 matrix in the type of x; in float32."""
    if x.dtype == tl.float32:
        high, low = two_parts(x)
        out = tl.dot(high, member, input_precision=PRECISION)
        return tl.dot(low, member, out, input_precision=PRECISION)
    else:
        return tl.dot(x, member, input_precision=PRECISION)


@triton.jit
def select_rows(member, x, PRECISION: tl.constexpr):
    """`member x`, `[R, M] @ [M, N]`, likewise."""
    if x.dtype == tl.float32:
        high, low = two_parts(x)
        out = tl.dot(member, high, input_precision=PRECISION)
        return tl.dot(member, low, out, input_precision=PRECISION)
    else:
        return tl.dot(member, x, input_precision=PRECISION)


@triton.jit
def two_parts(x):
    """float32 as the 11 bits that tf32 keeps, and the rest, of which it keeps 11 again."""
    high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high, x - high
