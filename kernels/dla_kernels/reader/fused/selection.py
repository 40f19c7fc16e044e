# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Products with a 0/1 matrix, which select and sum: nothing is lost, even if tensor cores round float32 to tf32.

They do so if "tf32" is requested, and on Blackwell even if it is not: there Triton takes a factor for narrow if
anything narrow went into it, such as the bytes of an age table (Triton's issue 10176). So a float32 factor enters as
two of tf32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def select_columns(x, member, PRECISION: tl.constexpr):
    """`x member`, `[R, M] @ [M, N]`, in float32; member is a 0/1 matrix in the type of x."""
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
