"""Reading several states at once, for any plan, with plain decay or the gated delta rule (eq. 18)."""

from dla_kernels.reader.op import multi_state_attention

__all__ = ["multi_state_attention"]
