"""Makes torch believe in a GPU; fake tensors can then be differentiated there."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import subprocess
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("gpu.cpp")


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def compile_library(path: Path) -> None:
    """Compile what `pretend` loads. It fits the installed torch alone."""
    torch = _torch_folder()
    subprocess.run(
        [
            "g++", "-shared", "-fPIC", "-std=c++20", f"-I{torch / 'include'}", str(_SOURCE), "-o", str(path),
            f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu",
        ],
        check=True,
    )  # fmt: skip


def pretend(library: Path) -> None:
    """Must come before torch is imported: it asks once what GPUs there are."""
    for name in ("libc10.so", "libtorch_cpu.so", "libtorch_cuda.so"):
        if (part := _torch_folder() / "lib" / name).exists():  # the last one only where torch was built for CUDA
            ctypes.CDLL(str(part), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import torch
    from torch.cuda.amp import common

    from dla_kernels import arguments, operators

    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.is_bf16_supported = lambda *_: True
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.nn.functional.scaled_dot_product_attention = _attention
    common.amp_definitely_not_available = lambda: False
    arguments._obstacle_on_gpu = lambda device: None
    operators.gpu_of = lambda arguments: contextlib.nullcontext()
    torch.Tensor.pin_memory = _pinned  # pyright: ignore[reportAttributeAccessIssue]  # fake tensors have no such memory


def _attention(q: Any, k: Any, v: Any, mask: Any = None, is_causal: bool = False, enable_gqa: bool = False) -> Any:
    """A torch that was built for CUDA would ask the GPU which of its kernels it can run."""
    import torch

    attend: Any = getattr(torch, "_scaled_dot_product_attention_math")  # noqa: B009  it is no part of the interface
    return attend(q, k, v, mask, is_causal=is_causal, enable_gqa=enable_gqa)[0]


def _pinned(x: Any) -> Any:
    copy = x.clone()
    copy.is_in_pinned_memory = True
    return copy
