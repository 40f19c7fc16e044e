import resource

import pytest
import torch

from dla_train.training.host_memory import keep_freed_memory, memory_lacked
from dla_train.training.module import LanguageModelTraining


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
    assert memory_lacked(MemoryError()) == "main"
    assert memory_lacked(RuntimeError("expected a tensor")) is None


def test_a_step_that_python_finds_no_memory_for_is_no_fault_of_the_program(cli, micro_recipe, monkeypatch):
    def no_memory(*_: object) -> None:
        raise MemoryError("Unable to allocate 1.42 PiB")

    monkeypatch.setattr(LanguageModelTraining, "training_step", no_memory)
    done = cli("fit", "--recipe", micro_recipe)
    assert done.code == 1
    assert "out of main memory at step 1. Lower training.micro_batch (now 2" in done.err


def test_nor_is_a_validation(cli, micro_recipe, monkeypatch):
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LanguageModelTraining, "validation_step", no_memory)
    done = cli("fit", "--recipe", micro_recipe, "training.steps=6", "training.validate_every=null")
    assert done.code == 1
    assert "out of main memory in the validation after step 6. Lower training.micro_batch (now 2" in done.err


def test_neither_is_another_command(cli, micro_recipe, monkeypatch):
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dla_train.config.show.to_yaml", no_memory)
    done = cli("show", micro_recipe)
    assert (done.code, done.err) == (1, "dla-train: error: too little main memory: no more is said.\n")
