"""What a layer computes around the op.

In torch these are many passes over the same numbers, and some of what they save for the backward is wider than the
inputs. In Triton (`fused/`) each number is read once or twice, and only inputs are saved.
"""

from dla_kernels.layers.convolution import short_convolution
from dla_kernels.layers.gated_activation import swiglu
from dla_kernels.layers.gated_norm import gated_rms_norm
from dla_kernels.layers.l2_norm import l2_normalize
from dla_kernels.layers.rms_norm import rms_norm
from dla_kernels.layers.scaled_heads import add_skip, scale_heads
from dla_kernels.layers.softplus import shifted_softplus

__all__ = [
    "add_skip",
    "gated_rms_norm",
    "l2_normalize",
    "rms_norm",
    "scale_heads",
    "shifted_softplus",
    "short_convolution",
    "swiglu",
]
