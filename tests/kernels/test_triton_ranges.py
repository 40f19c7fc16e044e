"""At the largest promised shapes, no index overflows and no grid exceeds CUDA's limits (index_ranges.py); and no loop's
bounds are carried by another loop (loop_bounds.py)."""

import pytest
import torch

from tests.kernels.index_ranges import grid_faults, index_faults
from tests.kernels.loop_bounds import carried_bounds
from tests.kernels.lowering import ttir_of
from tests.kernels.peak_memory import meta
from tests.kernels.ttir import Launched, recorded_launches

BATCH, TIME, HEADS, KEY_DIM, VALUE_DIM, SLOTS = 256, 2**18, 48, 256, 512, 64
"""The largest value of each, all at once: more than any GPU holds, so whatever fits on one is far below."""
MANY_DOCUMENTS = torch.arange(2**18 + 1)
"""As many documents as tokens: the most chunks and tiles for a number of tokens."""
TABLES = {
    "sequence_ptr": (0, len(MANY_DOCUMENTS)), "by_length_ptr": (0, len(MANY_DOCUMENTS)), "number_ptr": (0, TIME // 16),
    "first_chunk_ptr": (0, BATCH * TIME // 256), "first_tile_ptr": (0, BATCH * TIME // 16), "cu_ptr": (0, BATCH * TIME),
    "used_ptr": (0, SLOTS), "used_end_ptr": (0, SLOTS), "shift_ptr": (-1, SLOTS), "age_ptr": (0, SLOTS - 1),
    "count_ptr": (0, TIME), "entry_ptr": (0, 64), "origin_ptr": (-1, 63), "opened_ptr": (0, 64),
    "final_slot_ptr": (0, SLOTS - 1), "entries_ptr": (0, 64 + 256 * 63),
    "positions_ptr": (0, TIME - 1), "reached_ptr": (-(2**63), 2**63 - 1), "token_ends_ptr": (0, 1024),
    "start_ptr": (0, 2**63 - 2),
}  # fmt: skip
"""The ranges of the integers that kernels load."""


@pytest.fixture
def ttir(compile_report):
    """Lowers launches to TTIR, with the compiler that the interpreter otherwise replaces."""
    return ttir_of(compile_report)


def all_launches(dtype, *, delta, batch=BATCH, time=TIME, documents=None) -> list[Launched]:
    """All launches of segmenting, of decoding, and of reading, forward and backward, with a gate, with and without
    initial states."""
    from dla_kernels.decode.dynamic import decode_in_place, decode_operator
    from dla_kernels.decode.planned import decode_planned, decode_planned_in_place
    from dla_kernels.decode.positions import plan_token
    from dla_kernels.reader.fused.delta import read_delta, read_delta_backward
    from dla_kernels.reader.fused.plain import read_plain, read_plain_backward
    from dla_kernels.segmentation.fused.gated import score_gradient, segment_operator

    n = batch if documents is None else len(documents) - 1
    k, v = (
        meta(batch, time, HEADS if delta else 1, KEY_DIM, dtype=dtype),
        meta(batch, time, HEADS, VALUE_DIM, dtype=dtype),
    )
    weight, scalar = meta(batch, time, HEADS, SLOTS, dtype=dtype), meta(batch, time, HEADS, dtype=torch.float32)
    shift, count = meta(batch, time, HEADS, dtype=torch.int32), meta(n, HEADS, SLOTS, dtype=torch.int32)
    state = meta(n, HEADS, SLOTS, KEY_DIM, VALUE_DIM, dtype=torch.float32)
    tau, sums, opened = meta(HEADS, dtype=torch.float32), meta(n, HEADS, SLOTS, dtype=torch.float32), state[:, :, 0]
    ends = documents, 1.0, False
    with recorded_launches() as launches:
        segment_operator.run(k, v, tau, opened, sums, count, documents)
        score_gradient.run(k, v, shift, scalar, scalar, scalar, opened, documents)
        one = [x[:1, 0].expand(n, *x.shape[2:]) for x in (k, k, v, weight, scalar)]
        token = *one, one[-1] if delta else None, tau, state, count, opened, sums, count
        decode_operator.run(*token, 1.0)
        lag = None if delta else meta(n, HEADS, SLOTS, 2, dtype=torch.float32)
        decode_in_place.run(*token, lag, 1.0)
        planned = *token[:4], count[..., 0], *token[4:6], state, count
        decode_planned.run(*planned, True, 1.0)
        for collapse in (False, True):
            decode_planned_in_place.run(*planned, lag, collapse, 1.0)
        for block in (0, 2**18):
            plan_token.run(meta(n, dtype=torch.int64), HEADS, SLOTS, block)
        for past in (None, state):
            keeps = past is not None
            if delta:
                read_delta.run(k, k, v, weight, shift, scalar, scalar, None, past, *ends, keeps)
                read_delta_backward.run(v, past, k, k, v, weight, shift, scalar, scalar, past, *ends, True)
            else:
                read_plain.run(k, k, v, weight, shift, scalar, None, past, *ends, keeps)
                read_plain_backward.run(v, past, k, k, v, weight, shift, scalar, past, *ends, True)
        if documents is None:
            around_the_op(batch, time, dtype, delta=delta)
    return launches


def around_the_op(batch, time, dtype, *, delta) -> None:
    """What a layer launches beside the op; its inputs are part of a projection of 2^16 numbers a token."""
    from dla_kernels.layers.fused.convolution import convolution, convolution_backward
    from dla_kernels.layers.fused.gated_activation import gated_halves, gated_halves_backward
    from dla_kernels.layers.fused.gated_norm import gated_norm, gated_norm_backward
    from dla_kernels.layers.fused.l2_norm import unit_rows, unit_rows_backward
    from dla_kernels.layers.fused.rms_norm import normed_rows, normed_rows_backward
    from dla_kernels.layers.fused.scaled_heads import scaled_heads, scaled_heads_backward, skip, skip_backward
    from dla_kernels.layers.fused.softplus import softplus, softplus_backward

    channels = HEADS * VALUE_DIM + 2 * KEY_DIM
    x = torch.empty_strided((batch, time, channels), (time * 2**16, 2**16, 1), dtype=dtype, device="meta")
    weight, bias = meta(channels, 4, dtype=torch.float32), meta(channels, dtype=torch.float32)
    positions = meta(time, dtype=torch.int64)
    convolution.run(x, weight, bias, None, x[:, :3], True)
    convolution.run(x, weight, bias, positions, None, True)
    convolution_backward.run(x, x, weight, bias, positions, True)
    v = x[..., : HEADS * VALUE_DIM].unflatten(-1, (HEADS, VALUE_DIM))
    if not delta:
        dt, skipped = meta(*v.shape[:3], dtype=torch.float32), meta(HEADS, dtype=torch.float32)
        scaled_heads.run(v, dt)
        scaled_heads_backward.run(v, v, dt)
        skip.run(v, v, skipped)
        skip_backward.run(v, v, skipped)
        v = x[..., :4096]
    norm = v, meta(v.shape[-1], dtype=torch.float32), 1e-5, not delta, 1
    gated_norm.run(v, *norm)
    gated_norm_backward.run(v, v, *norm)
    normed_rows.run(v, norm[1], 1e-5, dtype)
    normed_rows_backward.run(v, v, norm[1], 1e-5)
    unit_rows.run(v, 1e-6)
    unit_rows_backward.run(v, v, 1e-6)
    projected = meta(batch, time, HEADS * SLOTS, dtype=dtype)
    softplus.run(projected, 0.5)
    softplus_backward.run(projected.float(), projected.float(), projected)
    wide = meta(batch, time, 2**15, dtype=dtype)
    gated_halves.run(wide)
    gated_halves_backward.run(wide[..., : 2**14], wide)


@pytest.mark.parametrize(
    ("dtype", "delta"), [(torch.float32, False), (torch.bfloat16, True)], ids=["plain", "delta"]
)  # fmt: skip
def test_no_index_overflows_at_the_largest_shapes(ttir, dtype, delta):
    launches = all_launches(dtype, delta=delta)
    assert not {fault for launch in launches for fault in grid_faults(launch)}
    # of the launches for chunk after chunk the last one of each kind, whose numbers are the largest
    kinds = {launch.kind(but="c"): launch for launch in sorted(launches, key=lambda x: x.arguments.get("c", 0))}
    assert len({launch.name for launch in kinds.values()}) > (25 if delta else 20)
    assert not [fault for launch in kinds.values() for fault in index_faults(launch, TABLES, ttir)]
    assert not [fault for launch in kinds.values() for fault in carried_bounds(launch, ttir)]


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_grids_for_as_many_documents_as_tokens(ttir, delta):
    launches = all_launches(torch.bfloat16, delta=delta, batch=1, documents=MANY_DOCUMENTS)
    assert not {fault for launch in launches for fault in grid_faults(launch)}


def faulty(kind: str):
    """A kernel that moves rows of 2^20 numbers, up to 2^12 of them."""
    import triton
    import triton.language as tl

    @triton.jit
    def right_kernel(x_ptr, number_ptr, rows):
        row = tl.minimum(tl.load(number_ptr + tl.program_id(0)), rows - 1)
        i = row.to(tl.int64) * 1048576 + tl.arange(0, 64)
        within = (i - row.to(tl.int64) * 1048576).to(tl.int32) * 33554431
        tl.store(x_ptr + i + within, 1.0, mask=tl.arange(0, 64) < rows)

    @triton.jit
    def address_kernel(x_ptr, number_ptr, rows):
        tl.store(x_ptr + tl.program_id(0) * 1048576 + tl.arange(0, 64), 1.0)

    @triton.jit
    def loaded_kernel(x_ptr, number_ptr, rows):
        row = tl.load(number_ptr + tl.program_id(0))
        tl.store(x_ptr + (row * 1048576).to(tl.int64) + tl.arange(0, 64), 1.0)

    @triton.jit
    def mask_kernel(x_ptr, number_ptr, rows):
        i = tl.arange(0, 64)
        tl.store(x_ptr + i, 1.0, mask=tl.program_id(0) * 1048576 + i < rows)

    @triton.jit
    def loop_kernel(x_ptr, number_ptr, rows):
        for i in range(0, rows * 1048576, 64):
            tl.store(x_ptr + i % 64, 1.0)

    @triton.jit
    def growing_kernel(x_ptr, number_ptr, rows):
        at = 0
        for i in range(0, rows):
            at += tl.load(number_ptr + i)
            tl.store(x_ptr + at, 1.0)

    @triton.jit
    def carried_kernel(x_ptr, number_ptr, rows):
        number = tl.load(number_ptr)
        for i in range(0, rows):
            following = tl.load(number_ptr + i)
            for j in range(0, number + 1):
                tl.store(x_ptr + j, 1.0)
            number = following

    @triton.jit
    def loaded_bound_kernel(x_ptr, number_ptr, rows):
        for i in range(0, rows):
            for j in range(0, tl.load(number_ptr + i)):
                tl.store(x_ptr + j, 1.0)

    return locals()[f"{kind}_kernel"]


@pytest.mark.parametrize(("kind", "expected"), [("growing", 0), ("loaded_bound", 0), ("carried", 1)])
def test_bounds_that_are_carried_on_are_found(ttir, kind, expected):
    kernel = faulty(kind)
    with recorded_launches() as launches:
        kernel[(1,)](meta(64, dtype=torch.float32), meta(64, dtype=torch.int32), 4096)
    found = carried_bounds(launches[0], ttir)
    assert len(found) == expected
    assert all("bounds of an inner loop depend on %number" in fault for fault in found)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("right", None),
        ("address", "arith.muli in 32 bits gives 0 to 4,293,918,720 and reaches an address"),
        ("loaded", "arith.muli in 32 bits gives 0 to 4,293,918,720 and reaches an address"),
        ("mask", "arith.muli in 32 bits gives 0 to 4,293,918,720 and reaches a mask"),
        ("loop", "arith.muli in 32 bits gives 4,294,967,296 to 4,294,967,296 and reaches a loop"),
        ("growing", "a number without a bound reaches an address"),
    ],
)
def test_overflows_are_found(ttir, kind, message):
    kernel = faulty(kind)
    with recorded_launches() as launches:
        kernel[(4096,)](meta(64, dtype=torch.float32), meta(64, dtype=torch.int32), 4096)
    found = index_faults(launches[0], {"number_ptr": (0, 4095)}, ttir)
    assert found[:1] == ([] if message is None else [f"{kind}_kernel: {message}"])


def test_grids_are_measured(ttir):
    with recorded_launches() as launches:
        faulty("right")[(1, 65_536, 65_535)](meta(64), meta(64), 1)
    assert grid_faults(launches[0]) == ["right_kernel: grid y is 65,536, above 65,535"]
