"""The op and the layers around it, at a recipe's sizes, against exact results (`dla_kernels.self_check`)."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from dla_data.counted import counted
from dla_kernels.arguments import resolve_backend, torch_or_triton
from dla_kernels.self_check import (
    Finding,
    OpShape,
    check_convolution,
    check_gated_norm,
    check_l2_norm,
    check_op,
    check_rms_norm,
    check_scaled_heads,
    check_skip,
    check_softplus,
    check_swiglu,
)
from dla_train.config.recipe import Recipe
from dla_train.data.prepared_config import PreparedData
from dla_train.estimate.activations import LinearMixer, capacity_of, state_shape
from dla_train.models.mixer_config import AttentionConfig, GatedDeltaNetConfig, Mamba2Config
from dla_train.preflight.check import Check

_LOGGER = logging.getLogger(__name__)

_LONGEST = 160
"""Characters of an error's message in the table."""

Examine = Callable[[torch.device, torch.dtype], list[Finding]]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Something of the project's own that a recipe's blocks compute.

    Attributes:
        what: its name. how: compares it with exact results, given device and type.
        backend: which implementation a device takes.
    """

    what: str
    how: Examine
    backend: Callable[[torch.device], str]


def check_kernels(recipe: Recipe, devices: Sequence[torch.device], say: Callable[[str], None]) -> list[Check]:
    """Check what the recipe's blocks compute on each of `devices`.

    Args:
        say: gets a sentence before each part.
    """
    dtype = torch.float32 if recipe.training.precision == "32-true" else torch.bfloat16
    checks = []
    for examination in examinations(recipe):
        found: dict[torch.device, list[Finding]] = {}
        failed = []
        for device in devices:
            say(f"preflight: comparing {examination.what} with exact results on {device}")
            try:
                found[device] = examination.how(device, dtype)
            except Exception as error:  # a kernel that cannot be compiled, too little memory, ...
                _LOGGER.error("%s on %s has failed:\n%s", examination.what, device, traceback.format_exc().rstrip())
                failed.append(f"failed on {device} with {_in_a_line(error)}")
        name = f"{examination.what}: {examination.backend(devices[0])}, {str(dtype).removeprefix('torch.')}"
        checks.append(_judged(name, found, failed))
    return checks


def _in_a_line(error: Exception) -> str:
    """Type and message, as far as they fit into a table."""
    text = " ".join(str(error).split()).replace("|", "\\|")
    return type(error).__name__ + (
        f": {text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}" if text else ""
    )


def _judged(what: str, found: dict[torch.device, list[Finding]], failed: Sequence[str]) -> Check:
    wrong = [
        *failed,
        *(
            f"{one.what} on {device} off by {one.error:.1e}, allowed {one.allowed:.1e}"
            for device, findings in found.items()
            for one in findings
            if not one.is_right
        ),
    ]
    if wrong:
        return Check(what=what, found="; ".join(wrong), is_right=False)
    findings = [one for findings in found.values() for one in findings]
    share, name = max((one.error / one.allowed, one.what) for one in findings if one.allowed)
    where = f" on {len(found)} devices" if len(found) > 1 else ""
    text = (
        f"{counted(len(findings), 'comparison')}{where}; the largest error is {share:.0%} of the allowed one ({name})"
    )
    return Check(what=what, found=text, is_right=True)


def examinations(recipe: Recipe) -> list[Examination]:
    """The op of every kind of linear block, and the layers around all of them."""
    model = recipe.model
    documents = isinstance(recipe.data, PreparedData) and recipe.data.documents == "separate"
    linear = [mixer for mixer in dict.fromkeys(model.mixers) if not isinstance(mixer, AttentionConfig)]
    weights = torch.bfloat16 if recipe.training.precision == "bf16-true" else torch.float32
    around = [part for mixer in linear for part in _around(mixer, weights)]
    around.append(("RMSNorm", partial(check_rms_norm, width=model.hidden, stream=weights, weights=weights)))
    around += [("SwiGLU", partial(check_swiglu, width=model.mlp_hidden))] if model.mlp_hidden else []
    found = [_op(mixer, documents=documents) for mixer in linear]
    names = ", ".join(dict.fromkeys(name for name, _ in around))
    return [*found, Examination(what=names, how=partial(_all, around), backend=_backend_of_layers)]


def _op(mixer: LinearMixer, *, documents: bool) -> Examination:
    key_dim, value_dim = state_shape(mixer)
    is_delta = isinstance(mixer, GatedDeltaNetConfig)
    shape = OpShape(
        heads=mixer.heads,
        groups=mixer.heads if isinstance(mixer, GatedDeltaNetConfig) else mixer.groups,
        key_dim=key_dim,
        value_dim=value_dim,
        slots=capacity_of(mixer),
        delta=is_delta,
    )

    def backend(device: torch.device) -> str:
        k, v = (torch.empty(1, 1, 1, size, device=device) for size in (key_dim, value_dim))
        return resolve_backend("auto", k, v, shape.slots)

    return Examination(
        what=f"op of {mixer.kind}, {mixer.memory.kind} memory",
        how=partial(check_op, shape, kind=mixer.memory.kind, documents=documents),
        backend=backend,
    )


def _around(mixer: LinearMixer, weights: torch.dtype) -> list[tuple[str, Examine]]:
    """What one linear mixer computes besides the op and products with weights."""
    parts: list[tuple[str, Examine]]
    convolution = partial(check_convolution, width=mixer.conv_width, weights=weights)
    norm = partial(check_gated_norm, weights=weights)
    match mixer:
        case Mamba2Config():
            inner = mixer.heads * mixer.head_dim
            channels = inner + 2 * mixer.groups * mixer.state_dim
            parts = [
                ("convolution", partial(convolution, channels=channels, bias=True)),
                ("scaled heads", partial(check_scaled_heads, heads=mixer.heads, value_dim=mixer.head_dim)),
                ("skip", partial(check_skip, heads=mixer.heads, value_dim=mixer.head_dim, weights=weights)),
                ("gated norm", partial(norm, row=(inner,), gate_first=True, groups=mixer.groups)),
            ]
        case GatedDeltaNetConfig():
            channels = mixer.heads * (2 * mixer.key_dim + mixer.value_dim)
            row = mixer.heads, mixer.value_dim
            parts = [
                ("convolution", partial(convolution, channels=channels, bias=False)),
                ("L2 norm", partial(check_l2_norm, heads=mixer.heads, key_dim=mixer.key_dim)),
                ("gated norm", partial(norm, row=row, gate_first=False)),
            ]
    if mixer.memory.kind != "single":
        parts.append(("slot weights", partial(check_softplus, slots=mixer.heads * capacity_of(mixer))))
    return parts


def _all(parts: list[tuple[str, Examine]], device: torch.device, dtype: torch.dtype) -> list[Finding]:
    return [
        Finding(what=f"{one.what} of {name}", error=one.error, allowed=one.allowed)
        for name, examine in parts
        for one in examine(device, dtype)
    ]


def _backend_of_layers(device: torch.device) -> str:
    return torch_or_triton("auto", "x", torch.empty(1, device=device))
