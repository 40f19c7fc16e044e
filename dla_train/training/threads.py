"""One number of CPU threads for everything that uses them."""

import numba
import numba.core.config
import torch


def set_threads(count: int | None) -> None:
    """Let PyTorch and the compiled scan use `count` threads; None leaves PyTorch's own choice and gives the scan the
    same.

    Both run on one OpenMP, whose number of threads numba sets to its own at each call: unless the two agree,
    PyTorch's products change theirs in the middle of a step.
    """
    if count is not None:
        torch.set_num_threads(count)
    most = getattr(numba.core.config, "NUMBA_NUM_THREADS")  # noqa: B009  set at import, from the environment
    numba.set_num_threads(min(torch.get_num_threads(), most))
