"""Mamba-2 (arXiv 2405.21060), as published by its authors (state-spaces/mamba2-*), and as transformers and
flash-linear-attention save it. The three differ in the names of a few keys."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from dla_train.conversion.source import Source
from dla_train.errors import UsageError
from dla_train.models import Mamba2Config, ModelConfig, SingleMemory

_LAYERS = "backbone.layers."


def is_mamba2(config: Any) -> bool:
    """Whether a `config.json` is that of a Mamba-2 model."""
    own = config.get("ssm_cfg")
    return config.get("model_type") == "mamba2" or (isinstance(own, dict) and own.get("layer") == "Mamba2")


def convert_mamba2(source: Source) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The model and its state.

    Raises:
        UsageError: a setting or a weight that our Mamba-2 does not have.
    """
    groups = _check(source)
    layers = source.count_layers(_LAYERS)
    embedding = source.weights.pop("backbone.embedding.weight", None)
    state = {"embedding.weight": source.take("backbone.embeddings.weight") if embedding is None else embedding}
    for layer in range(layers):
        theirs, ours = f"{_LAYERS}{layer}.", f"blocks.{layer}."
        state[f"{ours}mixer_norm.weight"] = source.take(f"{theirs}norm.weight")
        for name in ("in_proj.weight", "A_log", "dt_bias", "D", "norm.weight", "out_proj.weight"):
            state[f"{ours}mixer.{name}"] = source.take(f"{theirs}mixer.{name}")
        state[f"{ours}mixer.conv.weight"] = source.take(f"{theirs}mixer.conv1d.weight").squeeze(1)
        state[f"{ours}mixer.conv.bias"] = source.take(f"{theirs}mixer.conv1d.bias")
    state["norm.weight"] = source.take("backbone.norm_f.weight")
    vocabulary, hidden = state["embedding.weight"].shape
    head = source.weights.pop("lm_head.weight", state["embedding.weight"])
    state["head.weight"] = head

    first = "blocks.0.mixer."
    heads, inner = len(state[f"{first}A_log"]), state[f"{first}out_proj.weight"].shape[1]
    channels, width = state[f"{first}conv.weight"].shape
    config = ModelConfig(
        vocab_size=vocabulary,
        hidden=hidden,
        layers=layers,
        mixer=Mamba2Config(
            heads=heads,
            head_dim=inner // heads,
            state_dim=(channels - inner) // (2 * groups),
            groups=groups,
            conv_width=width,
            memory=SingleMemory(),
        ),
        mlp_ratio=None,
        tie_embeddings=head is state["embedding.weight"] or bool((head == state["embedding.weight"]).all()),
        norm_eps=source.config.get("layer_norm_epsilon", source.config.get("norm_eps", 1e-5)),
    )
    return config, state


def _check(source: Source) -> int:
    """Refuse what is another model; returns the number of groups."""
    wanted = {"use_bias": False, "use_conv_bias": True, "rms_norm": True, "rmsnorm": True, "norm_before_gate": False}
    for key, allowed in wanted.items():
        source.require(key, allowed, default=allowed)
    source.require("hidden_act", "silu", "swish", default="silu")
    source.require("attn_layer_idx", None, [])  # of state-spaces' hybrids
    source.require("d_intermediate", None, 0)
    for key in ("time_step_limit", "dt_limit"):
        low, high = (_number(end) for end in source.config.get(key) or (0.0, math.inf))
        if low > 0 or high < math.inf:
            raise UsageError(
                f"{source.folder} cannot be imported: its config.json has {key} [{low}, {high}], and step sizes of "
                "dla-train's Mamba-2 are not limited."
            )
    own = source.config.get("ssm_cfg") or {}
    if unknown := sorted(set(own) - {"layer", "ngroups", "d_state", "headdim", "expand", "d_conv"}):
        raise UsageError(f"{source.folder} cannot be imported: its ssm_cfg has {unknown[0]}, which is not known here.")
    groups = own.get("ngroups", source.config.get("n_groups", 1))
    if groups != 1:
        raise UsageError(
            f"{source.folder} cannot be imported: it has {groups} groups, and publishers do not agree whether the "
            "gated norm then goes over each group or over all of them."
        )
    return 1


def _number(value: Any) -> float:
    """A number of a `config.json`, in which transformers writes infinity as `{"__float__": "Infinity"}`."""
    return float(value["__float__"] if isinstance(value, dict) else value)
