"""What is said while Triton compiles; compiled here for a GPU that need not be there."""

from __future__ import annotations

import pytest
import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dla_train.runs.compilations import told_of_compilations


@triton.jit
def add_kernel(x_ptr, N: tl.constexpr):
    at = x_ptr + tl.arange(0, N)
    tl.store(at, tl.load(at) + 1.0)


def compile_for(size: int) -> None:
    source = ASTSource(fn=add_kernel, signature={"x_ptr": "*fp32", "N": "constexpr"}, constexprs={(1,): size})
    triton.compile(source, target=GPUTarget("cuda", 90, 32))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def test_the_first_kernel_is_announced_and_later_ones_are_counted(cache):
    said: list[str] = []
    with told_of_compilations("cuda", said.append, seconds=0.0):
        for size in (16, 32, 64):
            compile_for(size)
    assert said[0].endswith(f"the next start finds them in {cache}")
    assert said[1:] == ["compiled 2 Triton kernels so far", "compiled 3 Triton kernels so far"]
    assert knobs.compilation.listener is None
    with told_of_compilations("cuda", said.append, seconds=0.0):
        compile_for(16)  # from the cache
    assert len(said) == 3


def test_sentences_keep_their_distance():
    said: list[str] = []
    with told_of_compilations("cuda", said.append, seconds=1e9):
        for size in (16, 32, 64):
            compile_for(size)
    assert len(said) == 1


def test_another_listener_still_hears_everything(monkeypatch):
    heard: list[bool] = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda *, cache_hit, **_: heard.append(cache_hit))
    with told_of_compilations("cuda", lambda _: None):
        compile_for(16)
        compile_for(16)
    assert heard == [False, True]


def test_on_the_cpu_nothing_is_listened_to():
    with told_of_compilations("cpu", pytest.fail):
        assert knobs.compilation.listener is None
