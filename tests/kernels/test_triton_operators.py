"""The Triton kernels as torch operators: torch's own checks, what is refused, and the memory they take."""

import pytest
import torch
import torch.nn.functional as F

from dla_kernels import documents, dynamic_linear_attention, segment
from dla_kernels.arguments import check_documents
from tests.kernels.peak_memory import PeakMemory, meta, no_launches


@pytest.mark.interpret
@pytest.mark.parametrize("rule", ["plain", "delta"])
def test_opcheck_of_the_reader(rule):
    from dla_kernels.reader.fused import configs
    from dla_kernels.reader.fused.delta import read_delta
    from dla_kernels.reader.fused.plain import read_plain

    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return (0.1 * torch.randn(shape, generator=generator)).requires_grad_()

    v, weight, gate, state = leaf(1, 20, 2, 16), leaf(1, 20, 2, 3), leaf(1, 20, 2), leaf(1, 2, 3, 16, 16)
    shift = torch.full((1, 20, 2), -1, dtype=torch.int32)
    shift[:, 0], shift[:, 7] = 3, 3
    with configs.override(tile=16, long=16):
        q, k, decay = leaf(1, 20, 1, 16), leaf(1, 20, 1, 16), torch.full((1, 20, 2), -0.1, requires_grad=True)
        options = gate, state, None, 0.25, False, True
        if rule == "plain":
            torch.library.opcheck(read_plain.definition, (q, k, v, weight, shift, decay, *options))
        else:
            beta = torch.full((1, 20, 2), 0.5, requires_grad=True)
            torch.library.opcheck(read_delta.definition, (q, k, v, weight, shift, decay, beta, *options))


@pytest.mark.interpret
def test_opcheck_of_the_segmentation():
    from dla_kernels.reader.fused import configs
    from dla_kernels.segmentation.fused.gated import segment_operator, straight_through_gate

    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 20, 2, 16, generator=generator) for _ in range(2))
    tau, open_sum = torch.full((2,), 1.3), torch.zeros(1, 2, 16, 16)
    start = open_sum, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.int32)
    with configs.override(tile=16):
        torch.library.opcheck(segment_operator.definition, (k, v, tau, *start, None))
        shift, score, norm, *_ = segment_operator(k, v, tau, *start, None)
        first = torch.zeros(1, 20, 2, dtype=torch.bool)
        first[:, 0] = True
        leaves = [x.clone().requires_grad_() for x in (k, v, tau)]
        torch.library.opcheck(
            straight_through_gate.definition, (*leaves, shift, score, norm, first, open_sum, None, 0.1)
        )


@pytest.mark.interpret
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_opcheck_of_decoding(delta):
    from dla_kernels.decode.dynamic import decode_in_place, decode_operator
    from dla_kernels.decode.planned import decode_planned, decode_planned_in_place
    from dla_kernels.decode.positions import plan_token

    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    q, k, v, weight, decay = draw(2, 1, 16), draw(2, 1, 16), draw(2, 2, 16), draw(2, 2, 3), draw(2, 2)
    beta = torch.full((2, 2), 0.5) if delta else None
    state, age = draw(2, 2, 3, 16, 16), torch.tensor([2, 0, 1], dtype=torch.int32).expand(2, 2, 3).contiguous()
    past = torch.full((2,), 0.6), state, age, draw(2, 2, 16, 16), torch.rand(2, 2, 3), torch.ones_like(age)
    lag = None if delta else torch.zeros(2, 2, 3, 2)
    shift = torch.tensor([[-1, 1], [3, 0]], dtype=torch.int32)
    torch.library.opcheck(decode_operator.definition, (q, k, v, weight, decay, beta, *past, 0.25))
    torch.library.opcheck(decode_in_place.definition, (q, k, v, weight, decay, beta, *past, lag, 0.25))
    for collapse in (False, True):
        planned = q, k, v, weight, shift, decay, beta, state, age
        torch.library.opcheck(decode_planned.definition, (*planned, collapse, 0.25))
        torch.library.opcheck(decode_planned_in_place.definition, (*planned, lag, collapse, 0.25))
    torch.library.opcheck(plan_token.definition, (torch.tensor([0, 7]), 2, 3, 0))


@pytest.mark.interpret
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_compiled_model_code(delta):
    """torch.compile goes through the whole op, plan and read, forward and backward."""
    from dla_kernels.reader.fused import configs

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 20, 2, 16, generator=generator) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    weight, beta = (torch.rand(1, 20, 2, *size, generator=generator).requires_grad_() for size in ((3,), ()))
    leaves = (weight, beta) if delta else (weight,)

    def call(q, k, v, weight, beta):
        given = {"beta": beta} if delta else {}
        o, _ = dynamic_linear_attention(q, k, v, weight, 3, 1.3, backend="triton", gate="straight_through", **given)
        return o.sum()

    with configs.override(tile=16, long=16):
        eager = torch.autograd.grad(call(q, k, v, weight, beta), leaves)
        compiled = torch.autograd.grad(torch.compile(call, backend="aot_eager")(q, k, v, weight, beta), leaves)
    torch.testing.assert_close(compiled, eager)


@pytest.mark.interpret
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_what_inference_remembers_serves_training(delta):
    """Tables of lengths are made once; those made in inference mode must not be inference tensors."""
    from dla_kernels.reader.fused import configs

    q, weight = torch.randn(1, 23, 1, 16), torch.ones(1, 23, 1, 3, requires_grad=True)
    given = {"beta": torch.ones(1, 23, 1)} if delta else {}
    with configs.override(tile=16, long=16):
        with torch.inference_mode():
            dynamic_linear_attention(q, q, q, weight, 3, 1.3, backend="triton", **given)
        o, _ = dynamic_linear_attention(q, q, q, weight, 3, 1.3, backend="triton", **given)
        o.sum().backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.interpret
def test_compiled_documents():
    """What depends on the documents' lengths is not fixed to those of the first batch."""
    from dla_kernels.reader.fused import configs

    q, weight = torch.randn(1, 20, 2, 16), torch.rand(1, 20, 2, 3)

    def call(cu):
        return dynamic_linear_attention(q, q, q, weight, 3, 1.3, cu_seqlens=cu, backend="triton")[0]

    compiled = torch.compile(call, backend="aot_eager")
    with configs.override(tile=16, long=16):
        for cut in (7, 9):
            cu = torch.tensor([0, cut, 20])
            torch.testing.assert_close(compiled(cu), call(cu))


@pytest.fixture
def far(monkeypatch):
    """Tensors on the CPU stand for those on a GPU."""
    monkeypatch.setattr(documents, "_is_near", lambda x: False)


@pytest.fixture
def documents_read(monkeypatch, far):
    """Records the reads of tensors by the host, each of which would wait for the GPU."""
    read = []
    tolist = torch.Tensor.tolist

    def watched(self):
        if self.dtype in (torch.int32, torch.int64):
            read.append(self)
        return tolist(self)

    monkeypatch.setattr(torch.Tensor, "tolist", watched)
    return read


@pytest.mark.interpret
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_one_read_of_the_ends_serves_all_layers_and_their_gradients(documents_read, delta):
    from dla_kernels.reader.fused import configs

    cu = torch.tensor([0, 5, 20])
    x = torch.randn(1, 20, 1, 16, requires_grad=True)
    given = {"beta": torch.ones(1, 20, 1)} if delta else {}
    with configs.override(tile=16, long=16):
        for _ in range(2):
            options = {"cu_seqlens": cu, "gate": "straight_through", "backend": "triton", **given}
            o, _ = dynamic_linear_attention(x, x, x, torch.ones(1, 20, 1, 3), 3, 1.3, **options)
            o.sum().backward()
    assert sum(found is cu for found in documents_read) == 1
    assert not any(found.numel() == cu.numel() for found in documents_read if found is not cu)


def test_documents_that_change_are_checked_anew(far):
    cu = torch.tensor([0, 5, 70])
    for _ in range(2):
        check_documents(cu, 1, 70)
    cu[1] = 0
    with pytest.raises(ValueError, match="it must grow at every step"):
        check_documents(cu, 1, 70)
    with torch.inference_mode():
        inferred = torch.tensor([0, 5, 70])
        check_documents(inferred, 1, 70)
        inferred[1] = 70
        with pytest.raises(ValueError, match="it must grow at every step"):
            check_documents(inferred, 1, 70)


def test_the_host_reads_the_ends_of_documents_once(far):
    """Each time it would wait for the GPU; a tensor that has changed is read again."""
    from dla_kernels.reader.fused.pieces import Pieces

    cu, read = torch.tensor([0, 5, 70]), []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.tolist and args[0] is cu:
                read.append(cu)
            return func(*args, **(kwargs or {}))

    with Watched():
        pieces = [Pieces.of(1, 70, cu, 16, 32, cu.device) for _ in range(3)]
        assert len(read) == 1
        cu[1] = 6
        assert Pieces.of(1, 70, cu, 16, 32, cu.device).cu.tolist() == [0, 6, 70]
    assert pieces[0] is pieces[2]
    assert len(read) == 2


def test_one_long_document_makes_no_programs_for_the_short_ones():
    """States are carried from chunk to chunk by programs of those sequences that have a chunk left."""
    from dla_kernels.reader.fused.pieces import Pieces
    from dla_kernels.reader.fused.states_delta import chunks_backward, chunks_forward

    pieces = Pieces.of(1, 200, torch.tensor([0, 5, 105, 110, 150, 200]), 16, 32, torch.device("cpu"))
    assert pieces.chunks_by_length == (4, 2, 2, 1, 1)
    assert pieces.by_length.tolist() == [1, 3, 4, 0, 2]
    assert chunks_forward(pieces, return_state=False) == [(0, 3), (1, 1), (2, 1)]
    assert chunks_forward(pieces, return_state=True) == [(0, 5), (1, 3), (2, 1), (3, 1)]
    assert chunks_backward(pieces, has_state=False, has_dfinal=False) == [(2, 1), (1, 1)]
    assert chunks_backward(pieces, has_state=True, has_dfinal=True) == [(3, 1), (2, 1), (1, 3), (0, 5)]


def test_refusals_say_what_to_do():
    """On the CPU, in a process that does not interpret kernels."""
    k = torch.randn(1, 4, 1, 16)
    with pytest.raises(ValueError, match=r"v is on cpu; it needs a GPU .* pass backend='torch'"):
        segment(k, k, backend="triton")
    with pytest.raises(ValueError, match="must be one of auto, reference, torch, triton"):
        segment(k, k, backend="cuda")  # pyright: ignore[reportArgumentType]


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("k", "v", "capacity", "message"),
    [
        (torch.zeros(1, 4, 1, 16).double(), torch.zeros(1, 4, 1, 16), 4, "k has type torch.float64"),
        (torch.zeros(1, 4, 1, 16), torch.zeros(1, 4, 1, 16), 65, "capacity is 65; it takes up to 64"),
        (torch.zeros(1, 4, 1, 257), torch.zeros(1, 4, 1, 16), 4, "K is 257 and V 16; it takes K up to 256"),
    ],
)
def test_refusals_of_sizes_and_types(k, v, capacity, message):
    with pytest.raises(ValueError, match=message):
        segment(k, v, capacity, backend="triton")


def test_memory_of_forward_and_backward():
    """At the paper's shape and 16,384 tokens, everything but inputs and what the caller gets back: at most 4 GB."""
    from dla_kernels.reader.fused.plain import read_plain, read_plain_backward

    time, heads, slots = 16_384, 48, 30
    q, v, weight = meta(1, time, 1, 128), meta(1, time, heads, 64), meta(1, time, heads, slots)
    shift, decay = meta(1, time, heads, dtype=torch.int32), meta(1, time, heads, dtype=torch.float32)
    with no_launches():
        with PeakMemory() as forward:
            read_plain.run(q, q, v, weight, shift, decay, None, None, None, 1.0, False, False)
        with PeakMemory() as backward:
            read_plain_backward.run(v, None, q, q, v, weight, shift, decay, None, None, 1.0, False, True)
    assert 0.5e9 < forward.bytes < 2.5e9
    assert 1.5e9 < backward.bytes < 4e9


def delta_memory(time, document=None):
    """Bytes of forward and backward at the paper's GDN layer, 30 slots; document: tokens of each of those packed."""
    from dla_kernels.reader.fused.delta import read_delta, read_delta_backward

    heads, key_dim, value_dim, slots = 6, 192, 384, 30
    k, v, weight = meta(1, time, heads, key_dim), meta(1, time, heads, value_dim), meta(1, time, heads, slots)
    shift, scalar = meta(1, time, heads, dtype=torch.int32), meta(1, time, heads)
    cu = None if document is None else torch.tensor([*range(0, time, document), time])
    with no_launches():
        with PeakMemory() as forward:
            read_delta.run(k, k, v, weight, shift, scalar, scalar, None, None, cu, 1.0, False, False)
        with PeakMemory() as backward:
            read_delta_backward.run(
                v, None, k, k, v, weight, shift, scalar, scalar, None, cu, 1.0, False, document is None
            )
    return forward.bytes, backward.bytes


def test_memory_of_the_delta_rule():
    """At 16,384 tokens, everything but inputs and what the caller gets back: at most 4 GB."""
    forward, backward = delta_memory(16_384)
    assert 0.5e9 < forward < 2.5e9
    assert 1.5e9 < backward < 4e9


def test_memory_of_short_documents():
    """For 330 documents of 50 tokens, chunk algebra takes less than twice what it does for one sequence.

    Each fills up a tile, not a chunk.
    """
    with no_launches():
        joined, packed = algebra_memory(16_500), algebra_memory(16_500, document=50)
    assert packed < 2 * joined


def algebra_memory(time, document=None):
    """Bytes of the chunk algebra, forward and backward, of 6 heads with K 128."""
    from dla_kernels.reader.fused.configs import Tiles
    from dla_kernels.reader.fused.delta_chunks import chunk_algebra, chunk_algebra_backward
    from dla_kernels.reader.fused.pieces import Pieces

    cu = None if document is None else torch.tensor([*range(0, time, document), time])
    pieces = Pieces.of(1, time, cu, 64, 512, torch.device("meta"))
    k, scalar = meta(time, 6, 128), meta(time, 6)
    given = k, k, scalar, scalar, 1.0, pieces, Tiles(tile=64, long=512, block_k=64, block_v=64)
    with PeakMemory() as peak:
        chunk_algebra_backward(chunk_algebra(*given), *given)
    return peak.bytes


@pytest.mark.interpret
@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_more_chunks_than_a_grid_takes_are_launched_in_turn(monkeypatch, delta):
    from dla_kernels.reader.fused import configs, states_layout

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 70, 1, 16, generator=generator, requires_grad=True) for _ in range(3))
    weight = torch.rand(1, 70, 1, 3, generator=generator).requires_grad_()
    scalar = torch.rand(1, 70, 1, generator=generator).requires_grad_()
    decay, beta = (None, scalar) if delta else (-scalar, None)

    def gradients():
        with configs.override(tile=16, long=16):
            o, _ = dynamic_linear_attention(q, F.normalize(k, dim=-1), v, weight, 3, 1.3, decay, beta, backend="triton")
            return torch.autograd.grad(o.square().sum(), (q, k, v, weight, scalar), retain_graph=True)

    at_once = gradients()
    monkeypatch.setattr(states_layout, "LAUNCHED_CHUNKS", 2)  # of five
    for x, y in zip(gradients(), at_once, strict=True):
        assert torch.equal(x, y)
