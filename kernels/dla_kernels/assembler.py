"""Chooses an assembler (ptxas) for Hopper that sets up descriptors of shared memory correctly.

ptxas 12.8, which Triton 3.4 to 3.7 calls for sm_90, sometimes leaves out the instruction that sets the uniform register
from which the descriptor of a tensor-core operand is built. The product then reads whatever shared memory the register
happens to point at, with different results on each run, or ends in an illegal access. Seen on an H200 in the gradient
of slot weights (K 192, V 384, M 30); six of 1,450 variants of our kernels were affected. The same wheels hold a newer
ptxas for Blackwell, which does not have this bug and takes sm_90 as well: 12.9 in Triton 3.6, 13.1 in 3.7.
`kernels/benchmarks/compile_report.py` looks for the bug in the machine code of kernels.
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
"""The first version of ptxas that is known to be free of the bug."""
VARIABLE = "TRITON_PTXAS_PATH"
"""Environment variable that tells Triton which ptxas to use. A user's setting stays if that ptxas is new enough."""
_HOPPER = 90
PACKAGE = "nvidia-cuda-nvcc-cu12"
"""Contains ptxas 12.9, which is needed for Triton 3.7 on a driver for CUDA 12."""


@cache
def choose_assembler(index: int | None) -> None:
    """Makes Triton use a correct ptxas for GPU `index`; call it before anything is compiled for that GPU.

    Raises:
        RuntimeError: no correct ptxas here makes code that this GPU's driver runs; the message says what is installed
            and what to do.
    """
    if torch.version.hip is None and torch.cuda.get_device_capability(index)[0] == 9:
        use_right_assembler(driver_version())


def driver_version() -> int:
    """The newest major version of CUDA that the driver runs, or the one torch was built for if the driver says none."""
    version = ctypes.c_int(0)
    try:
        asked = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        asked = -1
    if asked == 0 and version.value > 0:
        return version.value // 1000
    return int((torch.version.cuda or "0").split(".")[0])


def use_right_assembler(driver: int) -> None:
    """Sets `TRITON_PTXAS_PATH` if the ptxas for Hopper is too old. driver: what `driver_version` returns.

    Triton from 3.9 on calls the newer one for Hopper by itself.

    Raises:
        RuntimeError: as `choose_assembler`.
    """
    from triton.backends.nvidia import compiler

    given = compiler.get_ptxas(_HOPPER)
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
    """The ptxas of NVIDIA's package for the last CUDA 12, whose code CUDA 12 drivers run, if it is installed."""
    from triton.knobs import NvidiaTool

    try:
        found = importlib.metadata.distribution(PACKAGE).locate_file("nvidia/cuda_nvcc/bin/ptxas")
    except importlib.metadata.PackageNotFoundError:
        return None
    return NvidiaTool.from_path(str(found))


def _of_blackwell() -> NvidiaTool | None:
    """The ptxas that Triton uses for Blackwell; third-party builds of Triton may have none, or no separate one."""
    from triton import knobs

    try:
        return knobs.nvidia.ptxas_blackwell
    except (AttributeError, RuntimeError):
        return None


def _forget_version() -> None:
    """Makes Triton read the version of ptxas again: it is part of its cache keys, and Triton remembers the old one."""
    from triton.backends.nvidia import compiler

    forget = getattr(getattr(compiler, "get_ptxas_version", None), "cache_clear", None)
    if forget is not None:
        forget()


def _version(tool: NvidiaTool) -> tuple[int, ...]:
    return tuple(int(part) for part in tool.version.split(".")[:2])
