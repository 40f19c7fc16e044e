"""Operators launch on the GPU that their tensors are on, and the code around them does not make the host wait for
it."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import dla_kernels
from dla_kernels import fenwick_plan, fixed_plan, operators
from dla_kernels.arguments import threshold_of
from dla_kernels.operators import gpu_of, operator
from dla_kernels.plan import SegmentState
from dla_kernels.segmentation.op import _nothing_before

PACKAGE = Path(dla_kernels.__file__).parent


@pytest.fixture
def current(monkeypatch):
    """The current GPU, as of a machine with four; what was current before is remembered."""
    state = {"gpu": 0}

    def exchange(index):
        if index < 0:
            return -1
        state["gpu"], before = index, state["gpu"]
        return before

    for name in ("_exchange_device", "_maybe_exchange_device"):
        monkeypatch.setattr(torch.cuda, name, exchange)
    return state


def test_the_gpu_of_the_tensors_is_current_meanwhile(current, monkeypatch):
    seen, assembled_for = [], []
    monkeypatch.setattr(operators, "choose_assembler", assembled_for.append)

    @operator("dla_test::on_its_gpu")
    def on_its_gpu(flag: bool, none: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        seen.append(current["gpu"])
        if flag:
            raise RuntimeError("inside")
        return x.clone()

    with FakeTensorMode():
        there = torch.empty(3, device="cuda:2")
    on_its_gpu.run(False, None, there)
    assert (seen, current["gpu"]) == ([2], 0)
    with pytest.raises(RuntimeError, match="inside"):
        on_its_gpu.run(True, None, there)
    assert (seen, current["gpu"]) == ([2, 2], 0)
    assert assembled_for == [2, 2]
    assert torch.equal(on_its_gpu(False, None, torch.ones(3)), torch.ones(3))
    with torch.no_grad():
        assert on_its_gpu(False, None, torch.ones(2)).numel() == 2
    assert seen == [2, 2, 0, 0]


@pytest.fixture
def calls(monkeypatch):
    """An operator that adds 1 to its second tensor, and how its calls went: past the dispatcher or through it."""
    went = []

    @operator("dla_test::added", changes=("y",))
    def added(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        went.append("launch")
        y += 1
        return 2 * x

    added.register_fake(lambda x, y: torch.empty_like(x))
    through = added.definition

    def counted(*args):
        went.append("dispatcher")
        return through(*args)

    monkeypatch.setattr(added, "definition", counted)
    return added, went


def test_where_nobody_looks_the_dispatcher_is_left_out(calls):
    added, went = calls
    x, y = torch.ones(2, requires_grad=True), torch.zeros(2)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            made = added(x, y)
        assert torch.equal(made, torch.full((2,), 2.0))
        assert not made.requires_grad
    assert went == ["launch", "launch"]
    assert y.tolist() == [2, 2]


def test_what_is_changed_is_known_to_be(calls):
    """A backward that needs the tensor as it was must refuse to run."""
    added, went = calls
    x, y = torch.ones(2, requires_grad=True), torch.ones(2)
    product = (x * y).sum()
    with torch.no_grad():
        added(torch.ones(2), y)
    assert went == ["launch"]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_tensors_can_be_changed(calls):
    added, went = calls
    with torch.inference_mode():
        y = torch.zeros(2)
        added(torch.ones(2), y)
    assert went == ["launch"]
    assert y.tolist() == [1, 1]


class Seen(TorchDispatchMode):
    """Remembers operators."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_who_looks_is_told(calls):
    added, went = calls
    with torch.enable_grad():
        added(torch.ones(2), torch.zeros(2))
    with Seen() as seen:
        added(torch.ones(2), torch.zeros(2))
    assert "dla_test::added" in seen.names
    traced: Any = torch.jit.trace(lambda x, y: added(x, y), (torch.ones(2), torch.zeros(2)), check_trace=False)
    assert "dla_test::added" in str(traced.graph)
    assert went == ["dispatcher", "launch"] * 3
    went.clear()
    assert added(torch.ones(2, device="meta"), torch.ones(2, device="meta")).is_meta
    with FakeTensorMode():
        fake = torch.ones(2)
    assert added(fake, fake.clone()).shape == (2,)
    assert went == ["dispatcher"] * 2, "nothing is launched"
    with pytest.raises(RuntimeError, match="Batching rule"):
        torch.vmap(added)(torch.ones(2, 3), torch.ones(2, 3))


def test_compiled_code_has_the_operator(calls):
    added, _ = calls
    graphs = []

    def look(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    with torch.no_grad():
        torch.compile(lambda x, y: added(x, y) + 1, backend=look, fullgraph=True)(torch.ones(2), torch.zeros(2))
    assert "dla_test" in graphs[0]


def test_without_a_gpu_none_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_of", None)
    for device in ("cpu", "meta"):
        with gpu_of([None, 1.0, torch.empty(1, device=device)]):
            pass


def test_every_operator_is_made_so():
    made = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node).endswith("custom_op"):
                assert path.name == "operators.py", f"{path.name}, line {node.lineno}"
            if isinstance(node, ast.FunctionDef):
                made += [ast.unparse(x) for x in node.decorator_list if ast.unparse(x).startswith("operator(")]
    assert len(made) == 28
    assert len(set(made)) == 28


CU_SEQLENS = torch.tensor([0, 3, 4, 9])


def test_tokens_with_nothing_before_are_found_without_a_wait():
    """To set the elements that a mask selects, the host would ask how many there are."""

    class WithoutMasks(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name().startswith("aten::index_put"):
                assert not any(x is not None and x.dtype == torch.bool for x in args[1]), "a mask as an index"
            return func(*args, **(kwargs or {}))

    count = torch.zeros(3, 2, 4, dtype=torch.int32)
    count[1, 0, 0] = 5
    expected = torch.zeros(1, 9, 2, dtype=torch.bool)
    expected[0, [0, 3, 4]] = torch.tensor([[True, True], [False, True], [True, True]])
    state = SegmentState(open_sum=count, score_sum=count, count=count)
    with WithoutMasks():
        found = _nothing_before(state, CU_SEQLENS, 9)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("plan", [fixed_plan, fenwick_plan])
def test_plans_of_documents_that_go_on_are_made_without_a_wait(plan):
    """On the meta device, no value can be read."""
    start = torch.tensor([5, 0, 2], device="meta")
    assert plan(1, 9, 2, capacity=4, cu_seqlens=CU_SEQLENS, start=start, device="meta").shift.shape == (1, 9, 2)


def test_one_threshold_for_all_heads_may_be_anywhere():
    """A kernel cannot read a number that lies on the host."""
    assert threshold_of(torch.tensor(0.5), 2, torch.device("meta")).device.type == "meta"
