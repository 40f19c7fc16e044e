"""Working memory of the op during the backward pass of one layer: above all, the states of chunks and their adjoint."""

from __future__ import annotations

from dla_kernels.reader.slots import STRIDE
from dla_train.estimate.activations import WIDE, Setting, capacity_of, long_chunk, state_shape, surplus_keys
from dla_train.estimate.flops import has_gate
from dla_train.models.config import ModelConfig
from dla_train.models.mixer_config import AttentionConfig, Mamba2Config, MixerConfig


def op_memory(config: ModelConfig, setting: Setting) -> int:
    """Bytes at the peak, beside inputs and what is kept for the backward.

    States are counted; the terms for the smaller tensors are fitted to what the operators allocate on the meta
    device at a dozen shapes (tests/estimate/test_op_memory.py: within 15 %).
    """
    return max(_of_mixer(mixer, setting) for mixer in set(config.mixers))


def _of_mixer(mixer: MixerConfig, setting: Setting) -> int:
    if isinstance(mixer, AttentionConfig):
        return 0
    key_dim, value_dim = state_shape(mixer)
    heads, slots = setting.computed(mixer.heads), capacity_of(mixer)
    state = setting.batch * heads // setting.shared * slots * key_dim * value_dim
    if setting.path == "torch":
        return WIDE * state * (STRIDE + 3)  # states of eight chunks; their adjoint; states before and after a move
    long, gate = long_chunk(mixer, setting), has_gate(mixer.memory)
    chunks = -(-setting.window // long) - 1  # the first chunk begins without a state
    kept = chunks * state * setting.a
    states = kept + chunks * state * WIDE  # with their adjoint in float32, or in two 16-bit parts
    # Per token and head, in 16-bit numbers: gradients, weights by slot and their gradient, weights of pairs in a tile.
    numbers = setting.tokens * heads * setting.a
    if isinstance(mixer, Mamba2Config):
        # Keys that several devices have: of each head of them, gradients and products of pairs.
        surplus = surplus_keys(mixer.groups, setting) * (2 * key_dim + 2048) / (1 if slots > 1 else 2)
        again = setting.tokens * setting.a * surplus
        of_queries = kept + numbers * (43 + 2.1 * key_dim + 0.7 * value_dim + 7.3 * slots)  # no adjoint yet
        of_states = states + numbers * (165 + 1.2 * value_dim + 5.2 * slots + (9 * slots + 50) * gate)
        return round(max(of_queries, of_states) + again)
    chunk_parts = long + 2 * key_dim + key_dim**2 / long  # of the delta rule: how a chunk reads, writes and removes
    around = chunk_parts + 3.5 * key_dim + 1.5 * value_dim + 170 + 5.5 * slots + (2.0 * value_dim + 4 * slots) * gate
    reading = states + numbers * around
    # Then the chunk algebra is differentiated: rows of tiles in float32, and what is kept at every tile that they pass.
    tile = 32 if setting.a == WIDE else 64
    trails = 2 * setting.a * key_dim * long / tile
    algebra = (26 + 2 * setting.a) * key_dim + trails + 12 * tile + setting.a * (chunk_parts + value_dim + slots + 50)
    return round(max(reading, setting.tokens * heads * algebra))
