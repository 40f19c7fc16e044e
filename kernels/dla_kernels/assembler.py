"""Which assembler makes machine code of our kernels on Hopper: one that gets descriptors of shared memory right.

ptxas 12.8, which Triton 3.4 to 3.7 calls for sm_90, now and then forgets to set the uniform register that the
descriptor of a tensor core's factor is made of: products then read whatever shared memory that points at, other numbers
each time, or end in an illegal access. Seen on an H200 in the gradient of slot weights (K 192, V 384, M 30); six of
1,450 variants of our kernels had it. The same wheels hold a newer ptxas for Blackwell, which has it right and takes
sm_90 as well: 12.9 in Triton 3.6, 13.1 in 3.7. `kernels/benchmarks/compile_report.py` looks for the mistake in the
machine code of kernels.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from triton.knobs import NvidiaTool

RIGHT = (12, 9)
"""The first version of ptxas that is known to be right."""
VARIABLE = "TRITON_PTXAS_PATH"
"""With it Triton is given another ptxas; we leave one alone that is new enough."""
PACKAGE = "nvidia-cuda-nvcc-cu12"
"""Has a ptxas 12.9, for drivers of CUDA 12 and Triton 3.7."""


@cache
def choose_assembler(index: int | None) -> None:
    """Has Triton assemble with a ptxas that is right, for the GPU of this number; before anything is compiled for it.

    Raises:
        RuntimeError: there is none that this GPU's driver takes; says what there is and what to do.
    """
    if torch.version.hip is None and torch.cuda.get_device_capability(index)[0] == 9:
        use_right_assembler(driver_version())


def driver_version() -> int:
    """The newest major version of CUDA that the driver runs; if it does not say, that which torch was built for."""
    version = ctypes.c_int(0)
    try:
        asked = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        asked = -1
    if asked == 0 and version.value > 0:
        return version.value // 1000
    return int((torch.version.cuda or "0").split(".")[0])


def use_right_assembler(driver: int) -> None:
    """Sets `TRITON_PTXAS_PATH` if the ptxas for Hopper is too old. driver: as `driver_version`.

    Raises:
        RuntimeError: as `choose_assembler`.
    """
    from triton import knobs

    given = knobs.nvidia.ptxas
    if _version(given) >= RIGHT:
        return
    newer = [tool for tool in (_of_blackwell(), _of_package()) if tool is not None and _version(tool) >= RIGHT]
    for tool in newer:
        if _version(tool)[0] <= driver:
            os.environ[VARIABLE] = tool.path
            _forget_version()
            return
    obstacle = "Triton comes with no newer one"
    if newer:
        obstacle = (
            f"the code of ptxas {newer[0].version} ({newer[0].path}) needs a driver for CUDA {_version(newer[0])[0]}, "
            f"but this one runs CUDA up to {driver}"
        )
    raise RuntimeError(
        f"ptxas {given.version} ({given.path}) makes wrong machine code of products on Hopper GPUs, and {obstacle}. "
        f"Update the driver, or `pip install {PACKAGE}`, or set {VARIABLE} to another ptxas from 12.9 on whose CUDA "
        "the driver runs, or pass backend='torch'."
    )


def _of_package() -> NvidiaTool | None:
    """That of NVIDIA's package for the last CUDA 12, which drivers of that CUDA run, if it is installed."""
    from triton.knobs import NvidiaTool

    try:
        found = importlib.metadata.distribution(PACKAGE).locate_file("nvidia/cuda_nvcc/bin/ptxas")
    except importlib.metadata.PackageNotFoundError:
        return None
    return NvidiaTool.from_path(str(found))


def _of_blackwell() -> NvidiaTool | None:
    """The ptxas that Triton uses for Blackwell; builds of Triton by others may have none, or not tell it apart."""
    from triton import knobs

    try:
        return knobs.nvidia.ptxas_blackwell
    except (AttributeError, RuntimeError):
        return None


def _forget_version() -> None:
    """Triton remembers the version of ptxas that it names what it caches by: it would go on with the old one's."""
    from triton.backends.nvidia import compiler

    forget = getattr(getattr(compiler, "get_ptxas_version", None), "cache_clear", None)
    if forget is not None:
        forget()


def _version(tool: NvidiaTool) -> tuple[int, ...]:
    return tuple(int(part) for part in tool.version.split(".")[:2])
