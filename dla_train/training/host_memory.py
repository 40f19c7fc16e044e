"""Makes training on the CPU keep the memory it has freed.

A step allocates and frees the same large tensors over and over. By default glibc maps each afresh and returns it, so
the kernel clears every page again. On a virtual machine with 2 shared cores that made a product over 32 MB five times
slower (26 against 6 ms, one reading each); an idle desktop shows far less.
"""

import ctypes

import torch

_M_TRIM_THRESHOLD = -1  # names and numbers: malloc.h of glibc
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tell glibc's malloc neither to map large blocks one by one nor to return freed memory to the system.

    Returns:
        Whether this was done; False with any other C library, which is left as it is.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def memory_lacked(error: RuntimeError | MemoryError) -> str | None:
    """`GPU` or `main` if the error says that this memory ran out, otherwise None."""
    if isinstance(error, MemoryError):  # of Python and numpy
        return "main"
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU"
    return "main" if "can't allocate memory" in str(error) or "Cannot allocate memory" in str(error) else None
