"""Bytes that the forward pass keeps for the backward, counted from what each module saves.

`a` is the number of bytes of a value that matrix products read (2 for bfloat16), WIDE that of a value in norms, gates
and time scales. Sizes are per token unless said otherwise. The two paths of the op keep different things: `torch` its
chunk algebra and a state every eighth chunk; `triton` little more than its inputs, because it recomputes the rest. The
same holds for what a layer computes around the op (`dla_kernels.layers`), which are kernels on every GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from dla_kernels.layers.gated_norm import WIDEST
from dla_kernels.reader.chunk import CHUNK
from dla_kernels.reader.fused.configs import tiles_by_rule
from dla_kernels.reader.slots import STRIDE
from dla_train.estimate.flops import has_gate
from dla_train.models.aligned_linear import FEW, MULTIPLE
from dla_train.models.config import ModelConfig
from dla_train.models.memory_config import DynamicMemory
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig, Mamba2Config, MixerConfig

Path = Literal["torch", "triton"]
LinearMixer = Mamba2Config | GatedDeltaNetConfig
Mixers = tuple[MixerConfig, ...]
WIDE = 4
IDS = 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What determines sizes besides the model.

    Attributes:
        batch, window: rows, and tokens per row, that go through the model at once.
        precision: of the recipe. path: of the op. is_gpu: whether it is a GPU.
        shared: number of devices that share each window.
        recompute_every: of the recipe; one in this many blocks keeps only its input and is recomputed.
        selective: of the recipe; recomputed blocks also keep the results of what takes long.
    """

    batch: int
    window: int
    precision: str
    path: Path
    is_gpu: bool
    shared: int = 1
    recompute_every: int | None = None
    selective: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch that a device holds; of shared windows, it has a slice of all heads, or as much of
        some heads."""
        return self.batch * self.window // self.shared

    def computed(self, heads: int) -> int:
        """How many heads the devices that share a window compute in all: each as many as any other."""
        return -(-heads // self.shared) * self.shared

    @property
    def is_fused(self) -> bool:
        """Whether what a layer computes around the op (`dla_kernels.layers`) are kernels."""
        return self.is_gpu or self.path == "triton"

    @property
    def a(self) -> int:
        """Bytes of a value that matrix products read."""
        return 4 if self.precision == "32-true" else 2

    @property
    def parameter(self) -> int:
        """Bytes of a parameter."""
        return 2 if self.precision == "bf16-true" else 4

    @property
    def is_autocast(self) -> bool:
        """Whether products read bfloat16 copies of float32 weights."""
        return self.precision == "bf16-mixed"


def saved_bytes(config: ModelConfig, setting: Setting) -> dict[str, int]:
    """Bytes by part, of the whole model for one micro-batch, at the moment when most is kept."""
    moments = kept_after_forward(config, setting), kept_in_backward(config, setting)
    return max(moments, key=lambda parts: sum(parts.values()))


def kept_after_forward(config: ModelConfig, setting: Setting) -> dict[str, int]:
    """Bytes by part, when the loss is known. A recomputed block keeps little, but autocast keeps its copies of all
    weights until the forward is over."""
    recomputed, others = _recomputed(config, setting)
    copied = config.mixers if setting.is_autocast else others
    return _kept(config, setting, inputs=len(recomputed), results=recomputed, whole=others, copied=copied)


def kept_in_backward(config: ModelConfig, setting: Setting) -> dict[str, int]:
    """Bytes by part, when the backward recomputes a block, which then keeps what any other block does. That happens to
    one block at a time, and at the first one (the last of the model) the inputs of all are still kept."""
    recomputed, others = _recomputed(config, setting)
    whole = (*others, *recomputed[-1:])
    return _kept(config, setting, inputs=len(recomputed), results=recomputed[:-1], whole=whole, copied=whole)


def _recomputed(config: ModelConfig, setting: Setting) -> tuple[Mixers, Mixers]:
    """The mixers of the blocks that are recomputed, and those of the others."""
    every = setting.recompute_every
    if every is None:
        return (), config.mixers
    return config.mixers[::every], tuple(mixer for index, mixer in enumerate(config.mixers) if index % every)


def _kept(
    config: ModelConfig, setting: Setting, *, inputs: int, results: Mixers, whole: Mixers, copied: Mixers
) -> dict[str, int]:
    """Bytes by part. Kept are: of `inputs` blocks the inputs, of the blocks with the mixers `results` the results of
    what takes long (if the recipe wants that), of those with `whole` everything, and of those with `copied` the copies
    of weights."""
    tokens, hidden, layers = setting.tokens, config.hidden, len(whole)
    has_mlp = config.mlp_hidden > 0
    norms = 2 if has_mlp else 1
    mlp = hidden + (3 if setting.is_fused else 4) * config.mlp_hidden
    parts = {
        "inputs of blocks computed again": tokens * inputs * hidden * setting.parameter,
        "their costly results": tokens
        * sum(_costly_results(config, mixer, setting) for mixer in results if setting.selective),
        # one or two norms a layer and one at the end
        "residual stream": tokens * (norms * layers + 1) * _norm(hidden, setting),
        # Input, projection, and the product that is projected down; in torch also the silu.
        "mlp": tokens * layers * setting.a * mlp if has_mlp else 0,
        "mixers": tokens * sum(_mixer(config, mixer, setting) for mixer in whole),
        "reader and plan": sum(_op(mixer, setting) for mixer in whole),
        "head": tokens * (IDS + hidden * setting.parameter) + config.vocab_size * hidden * setting.parameter,
        "copies of weights": sum(_cast_weights(config, mixer, setting) for mixer in copied),
    }
    return {name: round(size) for name, size in parts.items() if size}


def _costly_results(config: ModelConfig, mixer: MixerConfig, setting: Setting) -> int:
    """What products with weights, attention and the kernels' op give in one layer, per token; without the layer's last
    product, which is not kept."""
    hidden = config.hidden
    further = hidden + 2 * config.mlp_hidden if config.mlp_hidden else 0  # out_proj and gate_up_proj
    match mixer:
        case AttentionConfig():
            # q, k, v; attention, with a number per head for its backward.
            return setting.a * (hidden + mixer.keys_and_values(hidden) + hidden + further) + WIDE * mixer.heads
        case Mamba2Config():
            values = mixer.heads * mixer.head_dim
            projected = 2 * values + 2 * mixer.groups * mixer.state_dim + mixer.heads
        case GatedDeltaNetConfig():
            values = mixer.heads * mixer.value_dim
            projected = 2 * values + 2 * mixer.heads * mixer.key_dim + 2 * mixer.heads
    weights = 0 if mixer.memory.kind == "single" else mixer.heads * mixer.memory.capacity
    found = setting.a * (projected + weights + further)
    if setting.path == "triton":
        # What the op read and, of a dynamic memory, shift, score and norm.
        found += setting.a * values + 3 * WIDE * mixer.heads * isinstance(mixer.memory, DynamicMemory)
    return found


def _norm(width: int, setting: Setting) -> int:
    """What a norm keeps: as a kernel the stream as it is; in torch that in float32, and `_normed`."""
    if setting.is_fused and width <= WIDEST:
        return setting.parameter * width
    return WIDE * width + _normed(width, setting)


def _normed(width: int, setting: Setting) -> int:
    """What a norm in torch keeps beside its input: one number, and off the GPU, where it is no fused kernel, the
    normalized input."""
    return WIDE if setting.is_gpu else WIDE + WIDE * width


def _mixer(config: ModelConfig, mixer: MixerConfig, setting: Setting) -> float:
    """What a mixer keeps, without its op, per token."""
    a, hidden = setting.a, config.hidden
    copies = WIDE if a < WIDE else 0  # of values that must be converted to float32
    convolved = 1 if setting.is_fused else 2  # in torch before the silu and after it
    match mixer:
        case AttentionConfig():
            pairs = mixer.keys_and_values(hidden)
            # Input; q, k, v; result, and its rows in order.
            kept = a * (hidden + hidden + pairs + 2 * hidden) + WIDE * mixer.heads
            if mixer.rope_base is not None:
                # q and k as rotated. Per position of a row: cosines and sines for both.
                kept += a * (hidden + pairs / 2) + 4 * WIDE * hidden / mixer.heads / 2 * setting.shared / setting.batch
            if mixer.window is not None and mixer.window < setting.window:
                behind = 1 - mixer.window / setting.window  # share of the tokens that are read in blocks
                # Blocks of q; and of k and v for every head, which each are part of two. Views, where they can be.
                is_copied = setting.batch > 1
                kept += a * hidden * behind * is_copied
                kept += a * 4 * hidden * behind * (is_copied or mixer.key_heads < mixer.heads)
            # Copies of keys and values, of which v is kept as it comes, and k rotated; and heads of zeros.
            surplus = 2 * surplus_keys(mixer.key_heads, setting) + 4 * (setting.computed(mixer.heads) - mixer.heads)
            return kept + a * surplus * hidden / mixer.heads
        case Mamba2Config():
            heads, inner = mixer.heads, mixer.heads * mixer.head_dim
            channels = inner + 2 * mixer.groups * mixer.state_dim
            # Input, projection, convolution, v, and what out_proj reads.
            products = a * (hidden + inner + channels + heads + convolved * channels + inner + inner)
            norm = _gated_norm(inner, inner // mixer.groups, setting)
            surplus = a * (convolved + 1) * 2 * surplus_keys(mixer.groups, setting) * mixer.state_dim
            zeros = setting.computed(heads) - heads
            surplus += a * (convolved + 2) * zeros * mixer.head_dim
            return products + norm + 4 * WIDE * (heads + zeros) + _slot_weight(mixer, setting) + surplus
        case GatedDeltaNetConfig():
            heads, keys, values = mixer.heads, mixer.heads * mixer.key_dim, mixer.heads * mixer.value_dim
            channels = 2 * keys + values
            products = a * (hidden + channels + values + 2 * heads + convolved * channels + values)
            unit = a * 2 * keys  # q and k of length one; in torch also copies in float32, and lengths
            if not setting.is_fused:
                unit += copies * 2 * keys + WIDE * 2 * heads
            norm = _gated_norm(values, mixer.value_dim, setting)
            zeros = setting.computed(heads) - heads
            surplus = zeros / heads * (a * (convolved + 1) * channels + unit)
            return products + unit + norm + 5 * WIDE * (heads + zeros) + _slot_weight(mixer, setting) + surplus


def surplus_keys(number: int, setting: Setting) -> int:
    """How many heads of keys are computed more than once, because there are fewer than devices."""
    return max(setting.shared - number, 0)


def _gated_norm(channels: int, width: int, setting: Setting) -> float:
    """What a gated norm over rows of `width` channels keeps beside its gate, which is part of a projection: as a kernel
    its input; in torch the input, silu(gate), what it norms or has normed, and copies in float32."""
    if setting.is_fused and width <= WIDEST:
        return setting.a * channels
    copy = WIDE if setting.a < WIDE else 0
    return (3 * WIDE + copy) * channels + channels // width * _normed(width, setting)


def _slot_weight(mixer: LinearMixer, setting: Setting) -> int:
    """What slot weights keep: values after the softplus, in torch also those before it."""
    memory = mixer.memory
    if memory.kind == "single":
        return 0
    return (1 if setting.is_fused else 2) * WIDE * setting.computed(mixer.heads) * memory.capacity


def _op(mixer: MixerConfig, setting: Setting) -> float:
    """What the reader and the plan of one layer keep, for the whole micro-batch."""
    match mixer:
        case AttentionConfig():
            return 0
        case Mamba2Config():
            heads, groups, key_dim, value_dim, delta = mixer.heads, mixer.groups, mixer.state_dim, mixer.head_dim, False
        case GatedDeltaNetConfig():
            heads, groups, key_dim, value_dim, delta = mixer.heads, mixer.heads, mixer.key_dim, mixer.value_dim, True
    a, heads = setting.a, setting.computed(heads)
    # shift, score, and the gate with its norm and its flag of first tokens
    plan = heads * (4 * WIDE + 1) if has_gate(mixer.memory) else heads * WIDE * isinstance(mixer.memory, DynamicMemory)
    if setting.path == "triton":
        return setting.tokens * (plan + 3 * WIDE * heads)
    rows = WIDE * heads
    if delta:
        # Products of pairs, vectors of keys, and the state's transition; see dla_kernels/reader/transitions.py.
        chunk = 9 * CHUNK + 11 * key_dim + key_dim**2 / CHUNK + (key_dim if a < WIDE else 0)
    else:
        # similarity, decays and Mx; q, k, Qe and U
        chunk = 3 * CHUNK + 4 * key_dim + (1 if a == WIDE else 2) * key_dim * groups / heads
    if a < WIDE or setting.batch > 1:
        chunk += value_dim
    ages = IDS * heads * (CHUNK + capacity_of(mixer))  # of slots and tokens, at every token
    chunks = -(-setting.window // CHUNK)
    states = heads // setting.shared * capacity_of(mixer)
    kept = setting.batch * -(-chunks // STRIDE) * WIDE * states * key_dim * value_dim
    return setting.tokens * (plan + rows * (chunk + 4) + ages) + kept


def long_chunk(mixer: LinearMixer, setting: Setting) -> int:
    """Tokens in a chunk of the Triton kernels, by the rule in `dla_kernels.reader.fused.configs`."""
    key_dim, value_dim = state_shape(mixer)
    dtype = torch.float32 if setting.a == WIDE else torch.bfloat16
    delta = isinstance(mixer, GatedDeltaNetConfig)
    return tiles_by_rule(key_dim, value_dim, capacity_of(mixer), dtype, delta=delta).long


def state_shape(mixer: LinearMixer) -> tuple[int, int]:
    """K and V, the shape of one state of one head."""
    if isinstance(mixer, GatedDeltaNetConfig):
        return mixer.key_dim, mixer.value_dim
    return mixer.state_dim, mixer.head_dim


def capacity_of(mixer: LinearMixer) -> int:
    """M, the number of slots that there is room for."""
    return 1 if mixer.memory.kind == "single" else mixer.memory.capacity


def _cast_weights(config: ModelConfig, mixer: MixerConfig, setting: Setting) -> int:
    """Bytes of the weight copies of a block: under autocast of every matrix; otherwise only of the slot weights' matrix
    times its scale, and of a joined matrix that has got longer rows."""
    hidden = config.hidden
    joined = slots = 0
    if not isinstance(mixer, AttentionConfig) and mixer.memory.kind != "single":
        slots = mixer.heads * capacity_of(mixer)
    match mixer:
        case AttentionConfig():
            others = 2 * hidden + mixer.keys_and_values(hidden)
        case Mamba2Config():
            others = mixer.heads * mixer.head_dim
            joined = 2 * others + 2 * mixer.groups * mixer.state_dim + mixer.heads
        case GatedDeltaNetConfig():
            others = mixer.heads * mixer.value_dim
            joined = 2 * others + 2 * mixer.heads * (mixer.key_dim + 1)
    longer = joined
    if setting.is_gpu and setting.a < WIDE and setting.tokens >= FEW:
        longer, slots = (width + -width % MULTIPLE for width in (joined, slots))
    if setting.is_autocast:
        return 2 * hidden * (longer + others + 3 * config.mlp_hidden + slots)
    return setting.parameter * hidden * (slots + (longer if longer > joined else 0))
