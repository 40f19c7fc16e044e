"""Where every parameter starts: one table, one function.

Each parameter draws from a generator of its own, seeded by the model's seed and the parameter's name, on the CPU in
float32. So the weights are the same on every device and in every type, and two models that differ in one part (a
memory, say) start with equal weights in all others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dla_train.models.aligned_linear import AlignedLinear
from dla_train.models.convolution import ShortConvolution
from dla_train.models.gated_deltanet import GatedDeltaNet
from dla_train.models.head import Head
from dla_train.models.language_model import LanguageModel
from dla_train.models.mamba2 import Mamba2
from dla_train.models.memory import Dynamic
from dla_train.models.norm import GatedRMSNormDeltaNet, GatedRMSNormMamba2, RMSNorm
from dla_train.models.slot_weight import SlotWeight

Rule = Callable[[Tensor, torch.Generator, LanguageModel], None]
"""Fills a float32 CPU tensor."""

DT_MIN, DT_MAX = 1e-3, 1e-1
"""Range of `softplus(dt_bias)`, the step size at the start (mamba_ssm, fla)."""
A_FLOOR = 1e-4
"""Keeps `log(A)` finite where A is drawn from (0, 16)."""


@torch.no_grad()
def initialize(model: LanguageModel, seed: int) -> LanguageModel:
    """Fills all parameters, and the thresholds that are buffers, in place.

    Args:
        model: a model on any device but meta (`model.to_empty(device=...)` moves it from there).
        seed: any integer; the same seed gives the same weights.
    Returns:
        the model.
    Raises:
        ValueError: the model is on the meta device.
    """
    done: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in done:  # tied
                continue
            done.add(id(parameter))
            if parameter.is_meta:
                raise ValueError("the model is on the meta device; call model.to_empty(device=...) before initialize")
            values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            _rule(module, name)(values, _generator(seed, f"{path}.{name}"), model)
            parameter.copy_(values)
        if isinstance(module, Dynamic):
            module.threshold.copy_(torch.full_like(module.threshold, module.initial_threshold, dtype=torch.float32))
    return model


def _normal(x: Tensor, generator: torch.Generator, model: LanguageModel) -> None:
    """Normal(0, init_std), not scaled by depth, as in fla and in the Log-Linear code, whose paper runs use 0.006."""
    x.normal_(0.0, model.config.init_std, generator=generator)


def _one(x: Tensor, generator: torch.Generator, model: LanguageModel) -> None:
    x.fill_(1.0)


def _zero(x: Tensor, generator: torch.Generator, model: LanguageModel) -> None:
    x.zero_()


def _taps(x: Tensor, generator: torch.Generator, model: LanguageModel) -> None:
    """Uniform within +-1 / sqrt(width): the default of torch's Conv1d, which mamba_ssm keeps."""
    bound = x.shape[1] ** -0.5
    x.uniform_(-bound, bound, generator=generator)


def _a_log_mamba2(x: Tensor, generator: torch.Generator, model: LanguageModel) -> None:
    """A uniform in [1, 16] (mamba_ssm)."""
    x.uniform_(1.0, 16.0, generator=generator).log_()


def _a_log_deltanet(x: Tensor, generator: torch.Generator, model: LanguageModel) -> None:
    """A uniform in (0, 16) (fla)."""
    x.uniform_(0.0, 16.0, generator=generator).clamp_(min=A_FLOOR).log_()


def _dt_bias(x: Tensor, generator: torch.Generator, model: LanguageModel) -> None:
    """`softplus(dt_bias)` log-uniform in [DT_MIN, DT_MAX] (mamba_ssm, fla)."""
    dt = x.uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator).exp_()
    x.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


def _threshold(x: Tensor, generator: torch.Generator, model: LanguageModel) -> None:
    """The recipe's tau; `initialize` fills it whether it is a buffer or a parameter."""
    x.zero_()


RULES: dict[tuple[type[nn.Module], str], Rule] = {
    (nn.Embedding, "weight"): _normal,
    (nn.Linear, "weight"): _normal,
    (AlignedLinear, "weight"): _normal,
    (Head, "weight"): _normal,
    (SlotWeight, "weight"): _normal,  # lambda's projection, a linear layer like the others
    (SlotWeight, "scale"): _one,  # Log-Linear: L = 1
    (RMSNorm, "weight"): _one,
    (GatedRMSNormMamba2, "weight"): _one,
    (GatedRMSNormDeltaNet, "weight"): _one,
    (ShortConvolution, "weight"): _taps,
    # As in fla and transformers. mamba_ssm keeps torch's uniform +-0.5, and the difference matters: that gives keys and
    # values a common mean, and an untrained DLA model then scores 0.25 (no boundary at tau 0.6, std 0.006) instead of
    # 1.41 (every token a boundary).
    (ShortConvolution, "bias"): _zero,
    (Mamba2, "A_log"): _a_log_mamba2,
    (Mamba2, "dt_bias"): _dt_bias,
    (Mamba2, "D"): _one,
    (GatedDeltaNet, "A_log"): _a_log_deltanet,
    (GatedDeltaNet, "dt_bias"): _dt_bias,
    (Dynamic, "threshold"): _threshold,
}
"""(module, parameter) -> where it starts."""


def _rule(module: nn.Module, name: str) -> Rule:
    rule = RULES.get((type(module), name))
    assert rule is not None, f"no initialisation rule for {type(module).__name__}.{name}: add one to RULES"
    return rule


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True))
