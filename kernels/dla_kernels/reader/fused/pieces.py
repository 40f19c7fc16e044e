# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
"""Where sequences, chunks and tiles lie in a batch: index tables that all kernels share, and the functions that read
them.

Tokens are numbered through the whole batch, `[B, T]` flattened, and sequence n is the range `cu[n]:cu[n + 1]`: a row of
the batch, or a document. A sequence is cut into chunks of LONG tokens, a chunk into tiles of TILE tokens; the last of
each may be shorter. States are stored once per chunk; pairs of tokens are processed tile by tile.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.documents import ends_of
from dla_kernels.sending import sent


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """N sequences, their chunks and tiles; all tensors on the device of the kernels.

    Attributes:
        cu: `[N + 1]` int64, the first token of each sequence, then the number of tokens.
        chunk_sequence, chunk_number: `[chunks]` int32, the sequence that a chunk is in, and its number in that
            sequence.
        tile_sequence, tile_number: `[tiles]` int32, the same for tiles.
        first_chunk, first_tile: `[N + 1]` int32, where the chunks and tiles of a sequence begin.
        by_length: `[N]` int32, the sequences, the longest first. chunks_by_length: their numbers of chunks in that
            order, on the host.
        tokens: of the whole batch. tile, long: TILE and LONG, a multiple of it.
    """

    cu: Tensor
    chunk_sequence: Tensor
    chunk_number: Tensor
    tile_sequence: Tensor
    tile_number: Tensor
    first_chunk: Tensor
    first_tile: Tensor
    by_length: Tensor
    chunks_by_length: tuple[int, ...]
    tokens: int
    tile: int
    long: int

    @property
    def sequences(self) -> int:
        return self.cu.numel() - 1

    @property
    def chunks(self) -> int:
        return self.chunk_sequence.numel()

    @property
    def tiles(self) -> int:
        return self.tile_sequence.numel()

    @property
    def most_chunks(self) -> int:
        """Chunks of the longest sequence."""
        return self.chunks_by_length[0]

    def with_more_than(self, chunks: int) -> int:
        """How many sequences have more chunks than that: the first ones of `by_length`."""
        return bisect_left(self.chunks_by_length, -chunks, key=lambda count: -count)

    @staticmethod
    def of(batch: int, time: int, cu_seqlens: Tensor | None, tile: int, long: int, device: torch.device) -> Pieces:
        """The pieces of `batch` rows of `time` tokens, or of the documents of the only row."""
        ends = None if cu_seqlens is None else ends_of(cu_seqlens)
        return _pieces(batch, time, ends, tile, long, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is remembered serves training, too
def _pieces(batch: int, time: int, ends: tuple[int, ...] | None, tile: int, long: int, device: torch.device) -> Pieces:
    assert long % tile == 0
    cu = torch.arange(batch + 1) * time if ends is None else torch.tensor(ends)
    lengths = cu.diff()
    chunk_sequence, chunk_number, first_chunk = _cut(lengths, long)
    tile_sequence, tile_number, first_tile = _cut(lengths, tile)
    counts, by_length = first_chunk.diff().sort(descending=True, stable=True)
    made = {
        "cu": cu,
        "chunk_sequence": chunk_sequence,
        "chunk_number": chunk_number,
        "tile_sequence": tile_sequence,
        "tile_number": tile_number,
        "first_chunk": first_chunk,
        "first_tile": first_tile,
        "by_length": by_length.int(),
    }
    return Pieces(
        **{name: sent(x, device) for name, x in made.items()},
        chunks_by_length=tuple(counts.tolist()),
        tokens=batch * time,
        tile=tile,
        long=long,
    )


def _cut(lengths: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of these lengths in pieces of `size`: each piece's sequence and number, each sequence's first piece."""
    counts = (lengths + size - 1) // size
    first = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    sequence = torch.repeat_interleave(torch.arange(len(counts)), counts)
    number = torch.arange(int(first[-1])) - first[sequence]
    return sequence.int(), number.int(), first.int()


@triton.jit
def locate(piece, sequence_ptr, number_ptr, cu_ptr, SIZE: tl.constexpr):
    """The sequence of a piece of SIZE tokens, its number there, its first token and the one after its last."""
    n = tl.load(sequence_ptr + piece)
    number = tl.load(number_ptr + piece)
    begin = tl.load(cu_ptr + n)
    first = begin + number.to(tl.int64) * SIZE
    last = tl.minimum(first + SIZE, tl.load(cu_ptr + n + 1))
    return n, number, first, last


@triton.jit
def locate_rows(piece, sequence_ptr, number_ptr, cu_ptr, LONG: tl.constexpr, ROWS: tl.constexpr):
    """For a piece of ROWS tokens, numbered as if all chunks were full: its sequence, its chunk, its first token, and the
    token after the chunk's last one, which may come before the piece."""
    PARTS: tl.constexpr = LONG // ROWS
    chunk = piece // PARTS
    n, _, first, last = locate(chunk, sequence_ptr, number_ptr, cu_ptr, LONG)
    return n, chunk, first + (piece % PARTS) * ROWS, last


@triton.jit
def locate_tile(tile, sequence_ptr, number_ptr, cu_ptr, first_chunk_ptr, TILE: tl.constexpr, LONG: tl.constexpr):
    """For a tile: its sequence, its chunk, the chunk's number in the sequence, the tile's number in the chunk, the first
    token of the chunk, and the tile's first token and the one after its last."""
    n, number, first, last = locate(tile, sequence_ptr, number_ptr, cu_ptr, TILE)
    tiles: tl.constexpr = LONG // TILE
    c = number // tiles
    q = number % tiles
    chunk = tl.load(first_chunk_ptr + n) + c
    return n, chunk, c, q, first - q * TILE, first, last
