import resource

import pytest
import torch

from dla_train.training.host_memory import keep_freed_memory, memory_lacked


def _page_faults(repeats: int) -> int:
    """Page faults of allocating and freeing 32 MB `repeats` times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        torch.ones(8 * 1024 * 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again_without_page_faults():
    assert keep_freed_memory()
    _page_faults(50)  # until the heap has found its size
    assert _page_faults(10) < 8192, "32 MB are 8,192 pages; tensors in the same place fault for none of them again"


def test_it_is_told_which_memory_there_was_too_little_of():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory_lacked(error.value) == "main"
    assert memory_lacked(torch.OutOfMemoryError("CUDA out of memory")) == "GPU"
    assert memory_lacked(RuntimeError("expected a tensor")) is None
