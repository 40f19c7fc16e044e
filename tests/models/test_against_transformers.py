"""The single-state models are those that other people publish: weights copied to Hugging Face's, outputs agree.

Independent code: transformers' torch paths on the CPU. Single state only, which is all that they have.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # no word about kernels that this machine does not have

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dla_train.models import (
    AttentionConfig,
    GatedDeltaNetConfig,
    LanguageModel,
    Mamba2Config,
    ModelConfig,
    SingleMemory,
    initialize,
)
from dla_train.models.block import Block

transformers = pytest.importorskip("transformers")

HIDDEN, TIME = 32, 70


def ours(mixer: Mamba2Config | GatedDeltaNetConfig | AttentionConfig, layers: int = 1) -> LanguageModel:
    """Initialized, with every parameter moved away from values such as 0 and 1 that hide mistakes."""
    model = initialize(
        LanguageModel(ModelConfig(vocab_size=50, hidden=HIDDEN, layers=layers, mixer=mixer, init_std=0.2)), 0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def agree(one: nn.Module, x: Tensor, mine: Tensor, other: nn.Module, y: Tensor, theirs: Tensor) -> None:
    """Outputs, and the gradient of the input, which goes through everything."""
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    do = torch.randn(mine.shape, generator=torch.Generator().manual_seed(2))
    (dx,), (dy,) = torch.autograd.grad(mine, x, do), torch.autograd.grad(theirs, y, do)
    torch.testing.assert_close(dx, dy, rtol=1e-3, atol=1e-4 * dy.abs().max().item())
    assert mine.abs().max() > 0.1, "nothing to see"


def two_inputs() -> tuple[Tensor, Tensor]:
    x = torch.randn(2, TIME, HIDDEN, generator=torch.Generator().manual_seed(3))
    return x.clone().requires_grad_(), x.clone().requires_grad_()


def test_mamba2_is_that_of_transformers() -> None:
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config as TheirConfig
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    model = ours(Mamba2Config(heads=4, head_dim=16, state_dim=24, groups=1, memory=SingleMemory()))
    mine = cast(Block, model.blocks[0]).mixer
    config = TheirConfig(
        num_heads=4, head_dim=16, hidden_size=HIDDEN, state_size=24, expand=2, n_groups=1, conv_kernel=4,
        num_hidden_layers=1, vocab_size=50, chunk_size=16, use_conv_bias=True, use_bias=False, layer_norm_epsilon=1e-5,
    )  # fmt: skip
    theirs = Mamba2Mixer(config, layer_idx=0)
    weights = mine.state_dict()
    weights["conv1d.weight"] = weights.pop("conv.weight")[:, None]
    weights["conv1d.bias"] = weights.pop("conv.bias")
    theirs.load_state_dict({name: value for name, value in weights.items() if not name.startswith("memory.")})
    x, y = two_inputs()
    out = theirs(y)
    agree(mine, x, mine(x)[0], theirs, y, out[0] if isinstance(out, tuple) else out)


def test_gated_deltanet_is_that_of_qwen3_next() -> None:
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    heads, key_dim, value_dim = 3, 16, 24
    mixer = GatedDeltaNetConfig(heads=heads, key_dim=key_dim, value_dim=value_dim, memory=SingleMemory())
    mine = cast(Block, ours(mixer).blocks[0]).mixer
    config = Qwen3NextConfig(
        hidden_size=HIDDEN, linear_num_value_heads=heads, linear_num_key_heads=heads, linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim, linear_conv_kernel_dim=4, rms_norm_eps=1e-5, num_hidden_layers=4,
        vocab_size=50,
    )  # fmt: skip
    theirs = Qwen3NextGatedDeltaNet(config, layer_idx=0)
    weights = mine.state_dict()
    keys, values = heads * key_dim, heads * value_dim
    q, k, v, gate, b, a = weights.pop("in_proj.weight").split((keys, keys, values, values, heads, heads))
    # Theirs goes head by head: q, k, v and z of a head, then those of the next; b and a likewise.
    by_head = [part.unflatten(0, (heads, -1)) for part in (q, k, v, gate)]
    weights["in_proj_qkvz.weight"] = torch.cat(by_head, 1).flatten(0, 1)
    weights["in_proj_ba.weight"] = torch.stack((b, a), 1).flatten(0, 1)
    weights["conv1d.weight"] = weights.pop("conv.weight")[:, None]
    theirs.load_state_dict({name: value for name, value in weights.items() if not name.startswith("memory.")})
    x, y = two_inputs()
    agree(mine, x, mine(x)[0], theirs, y, theirs(y))


def llama_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under their names, joint matrices taken apart."""
    found = {
        "model.embed_tokens.weight": weights["embedding.weight"],
        "model.norm.weight": weights["norm.weight"],
        "lm_head.weight": weights["head.weight"],
    }
    for index in range(2):
        mine, theirs = f"blocks.{index}.", f"model.layers.{index}."
        found[theirs + "input_layernorm.weight"] = weights[mine + "mixer_norm.weight"]
        found[theirs + "post_attention_layernorm.weight"] = weights[mine + "mlp_norm.weight"]
        joint = weights[mine + "mixer.qkv_proj.weight"]
        keys = (len(joint) - HIDDEN) // 2
        for name, part in zip("qkv", joint.split((HIDDEN, keys, keys)), strict=True):
            found[f"{theirs}self_attn.{name}_proj.weight"] = part
        found[theirs + "self_attn.o_proj.weight"] = weights[mine + "mixer.out_proj.weight"]
        for name, part in zip(("gate", "up"), weights[mine + "mlp.gate_up_proj.weight"].chunk(2), strict=True):
            found[f"{theirs}mlp.{name}_proj.weight"] = part
        found[theirs + "mlp.down_proj.weight"] = weights[mine + "mlp.down_proj.weight"]
    return found


def rope(base: float | None) -> dict[str, Any]:
    """In the words of the installed version."""
    if transformers.__version__.startswith("4."):
        return {"rope_theta": base}
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}


def test_the_transformer_is_llama() -> None:
    """The whole model: embedding, rotary attention, SwiGLU, norms and head."""
    mine = ours(AttentionConfig(heads=4), layers=2)
    base = mine.config.mixer
    assert isinstance(base, AttentionConfig)
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=mine.config.mlp_hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=50, rms_norm_eps=mine.config.norm_eps, tie_word_embeddings=False,
        **rope(base.rope_base),
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config)
    theirs.load_state_dict(llama_names(mine.state_dict()))
    tokens = torch.randint(0, 50, (2, TIME), generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(mine(tokens)[0], theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    loss = theirs(tokens, labels=tokens).loss
    torch.testing.assert_close(mine.loss(tokens[:, :-1], tokens[:, 1:]), loss, rtol=1e-5, atol=1e-6)


def test_with_grouped_queries_and_a_window_it_is_mistral() -> None:
    mine = ours(AttentionConfig(heads=4, kv_heads=2, window=7), layers=2)
    config = transformers.MistralConfig(
        hidden_size=HIDDEN, intermediate_size=mine.config.mlp_hidden, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=HIDDEN // 4, vocab_size=50, rms_norm_eps=mine.config.norm_eps,
        tie_word_embeddings=False, sliding_window=7, **rope(500_000.0),
    )  # fmt: skip
    theirs = transformers.MistralForCausalLM(config)
    theirs.load_state_dict(llama_names(mine.state_dict()))
    tokens = torch.randint(0, 50, (2, TIME), generator=torch.Generator().manual_seed(4))
    assert TIME > 2 * 7
    torch.testing.assert_close(mine(tokens)[0], theirs(tokens).logits, rtol=1e-4, atol=1e-4)
