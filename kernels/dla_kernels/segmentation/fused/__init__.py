"""The segmentation as Triton kernels; TRITON.md at the top of this package has the stages."""
