"""Compiled loops of the host: torch's tensors as numpy arrays, and as many threads as pay off."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

THREAD_WORK = 1 << 20
"""Multiply-adds that take about as long as starting a thread."""


def array_of(x: Tensor) -> np.ndarray[Any, Any]:
    """`x` as an array, which shares its memory if it is contiguous and on the CPU.

    Raises:
        NotImplementedError: it has no numbers, as inside of `torch.func`.
    """
    plain = x.detach().contiguous().cpu()
    try:
        return plain.numpy()
    except RuntimeError as error:
        raise NotImplementedError(
            "dla_kernels takes no tensors of torch.func's transforms. Of the op, backend='reference' does."
        ) from error


def run_jobs(function: Callable[..., None], jobs: int, work: int, *arguments: Any) -> None:
    """Calls `function(first_job, last_job, *arguments)` on as many threads as torch uses; on fewer if the `work` of all
    jobs, in multiply-adds, is not worth starting them, as that of a single token when decoding.

    Numba's own threads are avoided: they set the number of OpenMP threads for the whole process, torch's included, and
    a rank that was told to use one core would use all of them from then on.
    """
    threads = min(torch.get_num_threads(), jobs, 1 + work // THREAD_WORK)
    if threads <= 1:
        function(0, jobs, *arguments)
        return
    bounds = [jobs * i // threads for i in range(threads + 1)]
    own, *others = pairwise(bounds)  # this thread does its share, too
    with ThreadPoolExecutor(threads - 1) as pool:
        given = [pool.submit(function, first, last, *arguments) for first, last in others]
        function(*own, *arguments)
        for done in given:
            done.result()
