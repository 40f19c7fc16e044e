"""The Triton kernels as torch operators: torch's own checks, what is refused, and the memory they take."""

import pytest
import torch

from dla_kernels import dynamic_linear_attention, segment
from tests.kernels.peak_memory import PeakMemory, algebra_memory, meta, no_launches


@pytest.mark.interpret
@pytest.mark.parametrize("rule", ["plain", "delta"])
def test_opcheck_of_the_reader(rule):
    from dla_kernels.reader.fused import configs
    from dla_kernels.reader.fused.delta import read_chunks
    from dla_kernels.reader.fused.plain import read_plain

    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return (0.1 * torch.randn(shape, generator=generator)).requires_grad_()

    v, weight, gate, state = leaf(1, 20, 2, 16), leaf(1, 20, 2, 3), leaf(1, 20, 2), leaf(1, 2, 3, 16, 16)
    shift = torch.full((1, 20, 2), -1, dtype=torch.int32)
    shift[:, 0], shift[:, 7] = 3, 3
    with configs.override(tile=16, long=16):
        if rule == "plain":
            decay = torch.full((1, 20, 2), -0.1, requires_grad=True)
            inputs = (
                leaf(1, 20, 1, 16),
                leaf(1, 20, 1, 16),
                v,
                weight,
                shift,
                decay,
                gate,
                state,
                None,
                0.25,
                False,
                True,
            )
            torch.library.opcheck(read_plain, inputs)
        else:
            made = leaf(20, 2, 16), leaf(20, 2, 16), leaf(20, 2, 16), leaf(2, 2, 16, 16), torch.ones(2, 2)
            torch.library.opcheck(read_chunks, (*made, v, weight, shift, gate, state, None, False, True))


@pytest.mark.interpret
def test_opcheck_of_the_chunk_algebra():
    from dla_kernels.reader.fused.compose_tiles import compose_tiles
    from dla_kernels.reader.fused.pieces import Pieces

    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return (0.1 * torch.randn(shape, generator=generator)).requires_grad_()

    pieces = Pieces.of(1, 40, None, 16, 32, torch.device("cpu"))
    tiles = leaf(2, 3, 16, 16), leaf(2, 48, 16), leaf(2, 48, 16), leaf(2, 48, 16), leaf(2, 3), leaf(2, 3)
    where = pieces.tile_sequence, pieces.tile_number, pieces.cu, pieces.first_chunk
    torch.library.opcheck(compose_tiles, (*tiles, *where, 40, pieces.chunks, 16, 32, torch.float32))


@pytest.mark.interpret
def test_opcheck_of_the_segmentation():
    from dla_kernels.reader.fused import configs
    from dla_kernels.segmentation.fused.gated import segment_operator, straight_through_gate

    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 20, 2, 16, generator=generator) for _ in range(2))
    tau, open_sum = torch.full((2,), 1.3), torch.zeros(1, 2, 16, 16)
    start = open_sum, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.int32)
    with configs.override(tile=16):
        torch.library.opcheck(segment_operator, (k, v, tau, *start, None))
        shift, score, norm, *_ = segment_operator(k, v, tau, *start, None)
        first = torch.zeros(1, 20, 2, dtype=torch.bool)
        first[:, 0] = True
        leaves = [x.clone().requires_grad_() for x in (k, v, tau)]
        torch.library.opcheck(straight_through_gate, (*leaves, shift, score, norm, first, open_sum, None, 0.1))


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


def test_refusals_say_what_to_do():
    """In a process that does not interpret, on the CPU."""
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
            read_plain._init_fn(q, q, v, weight, shift, decay, None, None, None, 1.0, False, False)
        with PeakMemory() as backward:
            read_plain_backward._init_fn(v, None, q, q, v, weight, shift, decay, None, None, 1.0, False, True)
    assert 0.5e9 < forward.bytes < 2.5e9
    assert 1.5e9 < backward.bytes < 4e9


def test_memory_of_the_delta_rule():
    """At the paper's GDN shape and 16,384 tokens: chunk algebra and operator, which do not peak together, in bytes."""
    from dla_kernels.reader.fused.delta import read_chunks, read_chunks_backward

    time, heads, key_dim, value_dim, slots = 16_384, 6, 192, 384, 30
    v, weight = meta(1, time, heads, value_dim), meta(1, time, heads, slots)
    shift = meta(1, time, heads, dtype=torch.int32)
    with no_launches():
        algebra, made = algebra_memory(time, heads, key_dim, 512)
        with PeakMemory() as forward:
            read_chunks._init_fn(*made, v, weight, shift, None, None, None, False, False)
        with PeakMemory() as backward:
            read_chunks_backward._init_fn(v, None, *made, v, weight, shift, None, None, False, True)
    kept = sum(x.nbytes for x in made)
    assert kept < 0.2e9
    assert 1e9 < algebra < 3e9
    assert 0.5e9 < forward.bytes + kept < 2.5e9
    assert 1.5e9 < backward.bytes + kept < 4e9


def test_memory_of_short_documents():
    """330 documents of 50 tokens take less than twice what one sequence does: each fills up a tile, not a chunk."""
    with no_launches():
        joined, _ = algebra_memory(16_500, 6, 128, 512)
        packed, _ = algebra_memory(16_500, 6, 128, 512, document=50)
    assert packed < 2 * joined
