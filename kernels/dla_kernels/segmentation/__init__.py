"""Where one state ends and the next begins: scores, boundaries and merges (eqs. 13 to 17)."""

from dla_kernels.segmentation.op import segment

__all__ = ["segment"]
