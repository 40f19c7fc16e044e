"""The delta rule's algebra of long chunks, made by doubling, is that of solving each chunk whole; and what it takes."""

import pytest
import torch

from dla_kernels.reader.fused.delta_chunks import chunk_algebra, double
from dla_kernels.reader.fused.pieces import Pieces
from dla_kernels.reader.transitions import transitions


def draw(batch, time, groups, heads, key_dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(batch, time, groups, key_dim, dtype=dtype, generator=generator) for _ in range(2))
    beta, decay = (torch.rand(batch, time, heads, dtype=dtype, generator=generator) for _ in range(2))
    return q, torch.nn.functional.normalize(k, dim=-1), -0.3 * decay, beta


def test_doubling_equals_solving_the_whole():
    """float64; 3 pieces of 8 tokens by doubling of tiles of 2, against one system of 8."""
    heads, time = 3, 24

    def pieces(size):
        q, k, decay, beta = (x.movedim(2, 1).unflatten(2, (-1, size)) for x in draw(1, time, heads, heads, 5))
        found = transitions(q, k, decay, beta, heads, None)
        return [x[0] for x in (found.within, found.read, found.write, found.carry)]

    made = double(*double(*pieces(2)))
    for name, ours, whole in zip(("Mx", "Qe", "U", "P"), made, pieces(8), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("batch", "time", "cu_seqlens"), [(2, 130, None), (2, 128, None), (1, 260, torch.tensor([0, 1, 5, 70, 130, 260]))]
)
def test_each_token_is_where_its_document_puts_it(batch, time, cu_seqlens):
    """Reading a single state by the parts gives what the recurrence gives, for short chunks and several documents."""
    heads, key_dim, value_dim = 2, 4, 3
    q, k, decay, beta = (x.float() for x in draw(batch, time, 1, heads, key_dim))
    v = torch.randn(batch, time, heads, value_dim, generator=torch.Generator().manual_seed(1))
    pieces = Pieces.of(batch, time, cu_seqlens, 16, 64, q.device)
    within, read, write, removal, carry = chunk_algebra(q, k, decay, beta, torch.float32, 0.5, heads, pieces)
    assert within.shape == (batch * time, heads, 64)

    flat = [x.flatten(0, 1).double() for x in (q, k, v, decay, beta)]
    read_out, expected = torch.zeros(batch * time, heads, value_dim), torch.zeros(batch * time, heads, value_dim)
    for chunk in range(pieces.chunks):
        sequence, number = int(pieces.chunk_sequence[chunk]), int(pieces.chunk_number[chunk])
        first = int(pieces.cu[sequence]) + 64 * number
        last = min(first + 64, int(pieces.cu[sequence + 1]))
        if number == 0:
            state = torch.zeros(heads, key_dim, value_dim)
            exact = torch.zeros(heads, key_dim, value_dim, dtype=torch.float64)
        t = slice(first, last)
        read_out[t] = torch.einsum("thj,jhv->thv", within[t, :, : last - first], v.flatten(0, 1)[t])
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
    """Full ones lie there as they are; a short document at the end makes all be moved."""
    found = []
    for cu_seqlens in (torch.tensor([0, 64, 128, 192]), torch.tensor([0, 64, 128, 192, 201])):
        inputs = [x.float().requires_grad_() for x in draw(1, int(cu_seqlens[-1]), 1, 2, 4)]
        with torch.no_grad():
            for x, whole in zip(inputs, draw(1, 201, 1, 2, 4), strict=True):
                x.copy_(whole[:, : x.shape[1]])
        pieces = Pieces.of(1, int(cu_seqlens[-1]), cu_seqlens, 16, 64, torch.device("cpu"))
        within, read, write, removal, _ = chunk_algebra(*inputs, torch.float32, 0.5, 2, pieces)
        for part in (within[:192], read[:192], write[:192], removal[:3]):
            part.pow(2).sum().backward(retain_graph=True)
        found.append([x.grad[:, :192] for x in inputs])
    for full, moved in zip(*found, strict=True):
        torch.testing.assert_close(full, moved, rtol=1e-5, atol=1e-6)
        assert full.norm() > 0


def test_gradients_are_those_of_the_definition():
    q, k, decay, beta = (x[:, :12].requires_grad_() for x in draw(1, 12, 1, 1, 3))
    pieces = Pieces.of(1, 12, None, 4, 16, q.device)

    def parts(q, k, decay, beta):
        """In float64, where chunk_algebra itself works in float32."""
        split = [torch.nn.functional.pad(x.movedim(2, 1), (0, 0) * (x.ndim == 4) + (0, 4)) for x in (q, k, decay, beta)]
        found = transitions(*(x.unflatten(2, (4, 4)) for x in split), 1, None)
        return double(*double(found.within[0], found.read[0], found.write[0], found.carry[0]))

    assert torch.autograd.gradcheck(parts, (q, k, decay, beta))
    ours = chunk_algebra(*(x.float() for x in (q, k, decay, beta)), torch.float32, 1.0, 1, pieces)
    exact = parts(q, k, decay, beta)
    for ours_part, part in zip(ours[:3], exact[:3], strict=True):
        torch.testing.assert_close(ours_part[:, 0].double(), part[0, 0, :12], rtol=1e-5, atol=1e-6)
