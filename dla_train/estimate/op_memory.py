"""What the op works in while the backward pass of one layer runs: above all the states of chunks and their adjoint."""

from __future__ import annotations

from dla_kernels.reader.slots import STRIDE
from dla_train.estimate.activations import WIDE, Setting, capacity_of, long_chunk, state_shape
from dla_train.estimate.flops import has_gate
from dla_train.models.config import AttentionConfig, GatedDeltaNetConfig, ModelConfig

TILE = 64
"""Tokens in a tile of the Triton kernels."""


def op_memory(config: ModelConfig, setting: Setting) -> int:
    """Bytes at the worst moment, beside inputs and what is kept for the backward.

    States are counted; the smaller tensors around them are fitted to what the operators allocate on the meta device
    at a dozen shapes (tests/estimate/test_op_memory.py: within 15 %).
    """
    mixer = config.mixer
    if isinstance(mixer, AttentionConfig):
        return 0
    key_dim, value_dim = state_shape(mixer)
    heads, slots = mixer.heads, capacity_of(mixer)
    state = setting.batch * heads * slots * key_dim * value_dim
    if setting.path == "torch":
        return WIDE * state * (STRIDE + 3)  # of eight chunks; adjoint, before and after a move
    long, delta, gate = long_chunk(config, setting), isinstance(mixer, GatedDeltaNetConfig), has_gate(mixer.memory)
    chunks = -(-setting.window // long) - 1  # a first chunk begins with none
    states = 2 * chunks * state * WIDE  # float32, or two parts of 16 bits; states and adjoint
    # per token and head, in 16-bit numbers: gradients of values (and keys), weights and their gradient by slot
    around = 3.5 * key_dim + 1.5 * value_dim + 170 if delta else 2 * value_dim + 30
    around += 5.5 * slots + ((2.0 * value_dim if delta else 2.5 * value_dim) + 4 * slots if gate else 0)
    reading = states + setting.tokens * heads * setting.a * around
    # The delta rule's chunk algebra is made again before, and is gone by then. Short tiles are filled up.
    pairs = (4.5 if setting.window % TILE == 0 else 6) * long
    trails = key_dim * long / (21 if setting.a < WIDE else 5)  # queries and their gradients at every tile they pass
    algebra = setting.tokens * heads * (93 * key_dim + trails + pairs + 2500) if delta else 0
    return round(max(reading, algebra))
