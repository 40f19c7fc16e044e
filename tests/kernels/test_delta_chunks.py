"""The delta rule's algebra of long chunks, composed of tiles, equals that of solving each chunk as a whole."""

import pytest
import torch

from dla_kernels.reader.fused.configs import Tiles
from dla_kernels.reader.fused.delta_chunks import DeltaChunks, chunk_algebra, chunk_algebra_backward
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.transitions import transitions

pytestmark = pytest.mark.interpret


def draw(batch, time, groups, heads, key_dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, time, groups, key_dim, dtype=dtype, generator=generator) for _ in range(2))
    beta, decay = (torch.rand(batch, time, heads, dtype=dtype, generator=generator) for _ in range(2))
    return q, torch.nn.functional.normalize(k, dim=-1), -0.3 * decay, beta


def pieces_of(time, long, tile=16):
    return Pieces.of(1, time, None, tile, long, torch.device("cpu"))


PARTS = ("within", "read", "write", "removal")
"""The fields of `DeltaChunks` that are compared: Mx, Qe, U and R."""


def arguments(inputs, pieces):
    """The arguments of chunk_algebra for q, k `[1, T, G, K]` and log_decay, beta `[1, T, H]`, with blocks of K of
    16."""
    tiles = Tiles(tile=pieces.tile, long=pieces.long, block_k=16, block_v=16)
    return *(x.flatten(0, 1) for x in inputs), 0.5, pieces, tiles


def gradients_of(parts):
    """For chunk_algebra_backward. What a chunk does is `carry I - R`; solved_whole differentiates nothing else."""
    given = dict(zip(PARTS, parts, strict=True))
    return DeltaChunks(**given, carry=-given["removal"].float().diagonal(dim1=-2, dim2=-1).sum(-1))


def solved_whole(q, k, decay, beta, long):
    """The result of chunk_algebra from one triangular system for each whole chunk; one sequence, with scale 0.5."""
    heads, time = beta.shape[2], q.shape[1]
    missing = -time % long
    split = (
        torch.nn.functional.pad(x.movedim(2, 1), (0, 0) * (x.ndim == 4) + (0, missing)).unflatten(2, (-1, long))
        for x in (0.5 * q, k, decay, beta)
    )
    q, k, decay, beta = split
    whole = transitions(q, k, decay, beta, heads, None)
    kept = decay[0].detach().sum(-1).exp()
    removal = kept[..., None, None] * torch.eye(q.shape[-1]) - whole.carry[0]

    def join(x):
        return x[0].flatten(1, 2).movedim(0, 1)[:time]

    return join(whole.within), join(whole.read), join(whole.write), removal.movedim(0, 1)


@pytest.mark.parametrize(
    ("time", "groups", "key_dim", "tile", "long", "dtype"),
    [
        (128, 2, 24, 16, 64, torch.float32),  # both blocks of K, the second not full
        (100, 1, 16, 16, 64, torch.float32),  # the last chunk is short
        (40, 1, 5, 16, 16, torch.float32),  # chunks of one tile
        (40, 1, 144, 16, 32, torch.float32),  # as many of K as one block takes, and more
        (70, 2, 33, 16, 32, torch.float16),
    ],
)
def test_carrying_rows_equals_solving_the_whole(time, groups, key_dim, tile, long, dtype, error):
    """Mx, Qe, U and R and the gradients of all inputs, against float64."""
    generator = torch.Generator().manual_seed(2)
    given = [x.to(dtype if i < 2 else torch.float32) for i, x in enumerate(draw(1, time, groups, 2, key_dim))]
    exact = [x.double().requires_grad_() for x in given]
    wanted = solved_whole(*exact, long)
    pieces = pieces_of(time, long, tile)
    found = chunk_algebra(*arguments(given, pieces))
    assert found.carry.shape == (pieces.chunks, 2)

    causal = torch.arange(long) <= (torch.arange(time) % long)[:, None]
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in wanted]
    weights[0] *= causal[:, None]
    allowed = 1e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for name, whole in zip(PARTS, wanted, strict=True):
        ours = getattr(found, name)
        assert ours.dtype == dtype
        if name == "within":
            ours = torch.where(causal[:, None], ours, 0.0)
        assert error(ours, whole) < allowed, f"{name}: {error(ours, whole):.1e}"
    changes = gradients_of(x.to(dtype) for x in weights)
    gradients = torch.autograd.grad(wanted, exact, weights)
    for name, ours, whole in zip(
        ("q", "k", "log_decay", "beta"),
        chunk_algebra_backward(changes, *arguments(given, pieces)),
        gradients,
        strict=True,
    ):
        assert error(ours.view(whole.shape), whole) < allowed, f"d {name}: {error(ours.view(whole.shape), whole):.1e}"


def test_the_carry_has_a_gradient_of_its_own(error):
    """A chunk keeps the product of its tokens' decays."""
    given = [x.float() for x in draw(1, 100, 1, 2, 16)]
    pieces = pieces_of(100, 64)
    made = chunk_algebra(*arguments(given, pieces))
    dcarry = torch.rand(pieces.chunks, 2, generator=torch.Generator().manual_seed(3))
    zeros = {name: torch.zeros_like(getattr(made, name)) for name in PARTS}
    _, _, found, dbeta = chunk_algebra_backward(DeltaChunks(**zeros, carry=dcarry), *arguments(given, pieces))
    decay = given[2].double().requires_grad_()
    carry = torch.stack([x.sum(1)[0].exp() for x in decay.split(64, 1)])
    assert error(made.carry, carry) < 1e-6
    assert error(found[None], torch.autograd.grad(carry, decay, dcarry.double())[0]) < 1e-6
    assert dbeta.norm() == 0


def test_a_strong_decay_leaves_the_digits_of_mild_ones(error):
    """Sums of decays over tiles are never computed as differences of larger sums, either."""
    q, k, decay, beta = draw(1, 96, 1, 2, 16)
    decay = 0.1 * decay
    decay[:, 20::40] = -1000.0
    exact = [x.requires_grad_() for x in (q, k, decay, beta)]
    given = arguments((x.detach().float() for x in exact), pieces_of(96, 48))
    found, wanted = chunk_algebra(*given), solved_whole(*exact, 48)
    causal = torch.arange(48) <= (torch.arange(96) % 48)[:, None]
    for name, whole in zip(PARTS, wanted, strict=True):
        ours = getattr(found, name)
        if name == "within":
            ours = torch.where(causal[:, None], ours, 0.0)
        assert error(ours, whole) < 1e-6, f"{name}: {error(ours, whole):.1e}"
    assert found.carry.max() == 0
    gradients = torch.autograd.grad(wanted, exact, [2.0 * x.detach() for x in wanted])
    changes = gradients_of(2.0 * x.detach().float() for x in wanted)
    for name, ours, whole in zip("qkgb", chunk_algebra_backward(changes, *given), gradients, strict=True):
        assert error(ours.view(whole.shape), whole) < 2e-6, f"d {name}: {error(ours.view(whole.shape), whole):.1e}"


@pytest.mark.parametrize(
    ("batch", "time", "cu_seqlens"), [(2, 66, None), (2, 64, None), (1, 100, torch.tensor([0, 1, 5, 40, 100]))]
)
def test_each_token_is_where_its_document_puts_it(batch, time, cu_seqlens):
    """Reading a single state with the parts gives the result of the recurrence, for short chunks and several
    documents."""
    heads, key_dim, value_dim = 2, 4, 3
    q, k, decay, beta = (x.float() for x in draw(batch, time, 1, heads, key_dim))
    v = torch.randn(batch, time, heads, value_dim, generator=torch.Generator().manual_seed(1))
    pieces = Pieces.of(batch, time, cu_seqlens, 16, 32, q.device)
    made = chunk_algebra(*arguments((q, k, decay, beta), pieces))
    within, read, write, removal, carry = made.within, made.read, made.write, made.removal, made.carry
    assert within.shape == (batch * time, heads, 32)

    flat = [x.flatten(0, 1).double() for x in (q, k, v, decay, beta)]
    read_out, expected = torch.zeros(batch * time, heads, value_dim), torch.zeros(batch * time, heads, value_dim)
    for chunk in range(pieces.chunks):
        sequence, number = int(pieces.chunk_sequence[chunk]), int(pieces.chunk_number[chunk])
        first = int(pieces.cu[sequence]) + 32 * number
        last = min(first + 32, int(pieces.cu[sequence + 1]))
        if number == 0:
            state = torch.zeros(heads, key_dim, value_dim)
            exact = torch.zeros(heads, key_dim, value_dim, dtype=torch.float64)
        t = slice(first, last)
        pairs = within[t, :, : last - first].movedim(1, 0).tril()
        read_out[t] = torch.einsum("htj,jhv->thv", pairs, v.flatten(0, 1)[t])
        read_out[t] += torch.einsum("thk,hkv->thv", read[t], state)
        state = carry[chunk][:, None, None] * state - removal[chunk] @ state
        state += torch.einsum("thk,thv->hkv", write[t], v.flatten(0, 1)[t])
        for s in range(first, last):
            q_s, k_s, v_s, decay_s, beta_s = (x[s] for x in flat)
            exact = exact * decay_s.exp()[:, None, None]
            update = beta_s[:, None] * (v_s - torch.einsum("k,hkv->hv", k_s[0], exact))
            exact = exact + k_s[0][:, None] * update[:, None, :]
            expected[s] = 0.5 * torch.einsum("k,hkv->hv", q_s[0], exact).float()
    torch.testing.assert_close(read_out, expected, rtol=1e-4, atol=1e-5)


def test_gradients_come_back_from_full_chunks_as_from_short_ones():
    """Full chunks need no rearrangement; a short document at the end makes all of them be moved."""
    found = []
    for cu_seqlens in (torch.tensor([0, 32, 64]), torch.tensor([0, 32, 64, 69])):
        time = int(cu_seqlens[-1])
        pieces = Pieces.of(1, time, cu_seqlens, 16, 32, torch.device("cpu"))
        given = arguments((x[:, :time].float() for x in draw(1, 69, 1, 2, 4)), pieces)
        made = chunk_algebra(*given)
        changes = {name: getattr(made, name).clone() for name in (*PARTS, "carry")}
        for name, x in changes.items():
            x[2 if name in ("removal", "carry") else 64 :] = 0
        found.append([x[:64] for x in chunk_algebra_backward(DeltaChunks(**changes), *given)])
    for full, moved in zip(*found, strict=True):
        torch.testing.assert_close(full, moved, rtol=1e-5, atol=1e-6)
        assert full.norm() > 0
