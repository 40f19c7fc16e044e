"""Gated DeltaNet (arXiv 2412.06464) as flash-linear-attention saves it, and its hybrids with softmax attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dla_train.conversion.source import Source
from dla_train.errors import UsageError
from dla_train.models import AttentionConfig, GatedDeltaNetConfig, HybridConfig, ModelConfig, SingleMemory
from dla_train.models.config import MLP_MULTIPLE

_LAYERS = "model.layers."


def is_gated_deltanet(config: Any) -> bool:
    """Whether a `config.json` is that of a Gated DeltaNet model."""
    return config.get("model_type") == "gated_deltanet"


def convert_gated_deltanet(source: Source) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The model and its state.

    Raises:
        UsageError: a setting or a weight that our Gated DeltaNet does not have.
    """
    _check(source)
    layers = source.count_layers(_LAYERS)
    softmax = _softmax_layers(source)
    linear = [layer for layer in range(layers) if layer not in softmax]
    if not linear:
        raise UsageError(f"{source.folder} cannot be imported: all of its layers are softmax attention.")
    heads, key_dim = source.config["num_heads"], source.config["head_dim"]
    state = {"embedding.weight": source.take("model.embeddings.weight")}
    for layer in range(layers):
        theirs, ours = f"{_LAYERS}{layer}.", f"blocks.{layer}."
        state[f"{ours}mixer_norm.weight"] = source.take(f"{theirs}attn_norm.weight")
        state |= _attention(source, theirs, ours) if layer in softmax else _mixer(source, theirs, ours)
        state[f"{ours}mlp_norm.weight"] = source.take(f"{theirs}mlp_norm.weight")
        gate_and_up = [source.take(f"{theirs}mlp.{name}_proj.weight") for name in ("gate", "up")]
        state[f"{ours}mlp.gate_up_proj.weight"] = torch.cat(gate_and_up)
        state[f"{ours}mlp.down_proj.weight"] = source.take(f"{theirs}mlp.down_proj.weight")
    state["norm.weight"] = source.take("model.norm.weight")
    is_tied = bool(source.config.get("tie_word_embeddings", False))
    state["head.weight"] = state["embedding.weight"] if is_tied else source.take("lm_head.weight")
    if is_tied:
        source.weights.pop("lm_head.weight", None)

    first = f"blocks.{linear[0]}."
    width = state[f"{first}mlp.down_proj.weight"].shape[1]
    if width % MLP_MULTIPLE:
        raise UsageError(
            f"{source.folder} cannot be imported: its MLPs are {width} wide, and those of dla-train a multiple of "
            f"{MLP_MULTIPLE}."
        )
    vocabulary, hidden = state["embedding.weight"].shape
    config = ModelConfig(
        vocab_size=vocabulary,
        hidden=hidden,
        layers=layers,
        mixer=GatedDeltaNetConfig(
            heads=heads,
            key_dim=key_dim,
            value_dim=state[f"{first}mixer.out_proj.weight"].shape[1] // heads,
            conv_width=state[f"{first}mixer.conv.weight"].shape[1],
            memory=SingleMemory(),
        ),
        hybrid=_hybrid(source, softmax),
        mlp_ratio=width * 3 / 2 / hidden,
        tie_embeddings=is_tied,
        norm_eps=source.config.get("norm_eps", 1e-6),
    )
    return config, state


def _check(source: Source) -> None:
    for key, allowed in (("use_gate", True), ("use_short_conv", True), ("allow_neg_eigval", False)):
        source.require(key, allowed, default=allowed)
    for key in ("output_gate_activation", "hidden_act"):
        source.require(key, "swish", "silu", default="swish")
    source.require("attnres_block_size", None)
    for key in ("num_heads", "head_dim"):
        if not isinstance(source.config.get(key), int):
            raise UsageError(f"{source.folder} cannot be imported: its config.json does not say {key}.")
    source.require("num_v_heads", None, source.config["num_heads"])


def _mixer(source: Source, theirs: str, ours: str) -> dict[str, Tensor]:
    """Our joint matrices; see `dla_train.models.gated_deltanet` for their order."""
    projections = [source.take(f"{theirs}attn.{name}_proj.weight") for name in ("q", "k", "v", "g", "b", "a")]
    taps = [source.take(f"{theirs}attn.{name}_conv1d.weight").squeeze(1) for name in ("q", "k", "v")]
    return {
        f"{ours}mixer.in_proj.weight": torch.cat(projections),
        f"{ours}mixer.conv.weight": torch.cat(taps),
        f"{ours}mixer.A_log": source.take(f"{theirs}attn.A_log"),
        f"{ours}mixer.dt_bias": source.take(f"{theirs}attn.dt_bias"),
        f"{ours}mixer.norm.weight": source.take(f"{theirs}attn.o_norm.weight"),
        f"{ours}mixer.out_proj.weight": source.take(f"{theirs}attn.o_proj.weight"),
    }


def _attention(source: Source, theirs: str, ours: str) -> dict[str, Tensor]:
    joint = torch.cat([source.take(f"{theirs}attn.{name}_proj.weight") for name in ("q", "k", "v")])
    return {
        f"{ours}mixer.qkv_proj.weight": joint,
        f"{ours}mixer.out_proj.weight": source.take(f"{theirs}attn.o_proj.weight"),
    }


def _softmax_layers(source: Source) -> tuple[int, ...]:
    return tuple((source.config.get("attn") or {}).get("layers", ()))


def _hybrid(source: Source, layers: tuple[int, ...]) -> HybridConfig | None:
    if not layers:
        return None
    attn = source.config["attn"]
    mixer = AttentionConfig(
        heads=attn["num_heads"],
        kv_heads=attn.get("num_kv_heads"),
        window=attn.get("window_size"),
        rope_base=float(attn.get("rope_theta", 10_000.0)),
    )
    return HybridConfig(layers=layers, mixer=mixer)
