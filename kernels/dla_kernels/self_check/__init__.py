"""Whether the ops compute on this machine what they should: outputs, decisions and all gradients against exact ones.

The tests of the project show this where they run; this shows it on the GPU, driver and compiler that somebody has.
`dla-train preflight` runs it for the layers of a recipe.
"""

from dla_kernels.self_check.finding import Finding, relative_error
from dla_kernels.self_check.layers import (
    check_convolution,
    check_gated_norm,
    check_l2_norm,
    check_rms_norm,
    check_scaled_heads,
    check_skip,
    check_softplus,
    check_swiglu,
)
from dla_kernels.self_check.op import OpShape, PlanKind, check_op

__all__ = [
    "Finding",
    "OpShape",
    "PlanKind",
    "check_convolution",
    "check_gated_norm",
    "check_l2_norm",
    "check_op",
    "check_rms_norm",
    "check_scaled_heads",
    "check_skip",
    "check_softplus",
    "check_swiglu",
    "relative_error",
]
