"""The recipe's `training` and `optimizer` sections."""

import re
from dataclasses import dataclass
from typing import Literal

from dla_train.config.limits import MOST_PROCESSES, MOST_STEPS, MOST_WINDOWS, require_at_most

Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
Fused = Literal["none", "liger"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long to train and on how much at a time.

    Attributes:
        steps: optimizer steps of the whole run.
        global_batch: windows per optimizer step, over all devices.
        micro_batch: windows that go through the model at once on one device; `global_batch` is a multiple of it, and
            the gradients of the pieces are averaged (by their answers, where only answers count).
        clip: largest norm of the whole gradient; null leaves it as it is.
        max_nonfinite: how many steps in a row may be skipped because their gradient is infinite or NaN (rounding, or a
            rare batch) or a spike; one more ends the run. `skipped` in `metrics.csv` counts all skipped steps.
        skip_above: a step is a spike, and skipped, too, if its gradient norm exceeds this many times the running mean
            over about the last hundred steps; the first hundred steps never are. 10 is large. null skips no spikes:
            they are only clipped.
        z_loss: weight of the mean of `logsumexp(logits)^2` in the minimized loss, which keeps the logits from drifting;
            1e-4 is common, 0 leaves it out. The training and validation losses shown stay pure cross-entropy.
        precision: `32-true`, `bf16-mixed` (weights in float32) or `bf16-true` (weights in bfloat16, of half the size:
            updates below 1/256 of a weight are lost, so norms and other weights near 1 hardly train; use `bf16-mixed`
            to pre-train).
        compile: `torch.compile` the blocks. The first step and the first validation wait for the compiler (under a
            minute for `tiny`); losses agree to rounding, not to the last bit.
        fused: `liger` computes the loss (with its matrix product) and RMSNorm by the Triton kernels of liger-kernel; it
            needs a CUDA GPU and the extra `fused`, and the loss agrees to rounding. Compiled blocks keep their own
            norms, which the compiler fuses. With `none` the loss is plain torch, which never holds all logits either.
        activation_checkpointing: what the forward keeps for the backward, which computes the rest again: the same
            results with less memory. `selective` keeps of a block its input and the results of what takes long
            (products with weights, attention, the Triton op), so that little is computed twice; `full` only the input,
            which takes up to a third more time; `every N` is `full` for one block in N; `none` keeps everything.
            `selective` is not for compiled blocks.
        accelerator: where to train; `auto` takes a CUDA GPU if there is one, else the CPU.
        threads: CPU threads per process; null leaves the choice to PyTorch. Another number may change the last bits
            of a loss.
        max_minutes: after this many minutes of this process, stop at the next step, save and report; null: no limit.
            The schedule stays that of `steps`.
        validate_every: steps between validations; null validates only at the end.
        validation_windows: how many windows, spread evenly over the validation text; null takes all, and 0 trains
            without any validation, for data that has no such text. They are divided among the processes: keep the
            number far below the windows that are trained on in `validate_every` steps.
    """

    steps: int
    global_batch: int
    micro_batch: int
    clip: float | None = 1.0
    max_nonfinite: int = 3
    skip_above: float | None = None
    z_loss: float = 0.0
    precision: Precision = "32-true"
    compile: bool = False
    fused: Fused = "none"
    activation_checkpointing: str = "none"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    threads: int | None = None
    max_minutes: float | None = None
    validate_every: int | None = None
    validation_windows: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "global_batch", "micro_batch"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        require_at_most("steps", self.steps, MOST_STEPS)
        require_at_most("global_batch", self.global_batch, MOST_WINDOWS)
        require_at_most("threads", self.threads, MOST_PROCESSES)
        _recompute_every(self.activation_checkpointing)
        if self.compile and self.recompute_selectively:
            raise ValueError(
                "activation_checkpointing is 'selective', which cannot see the products of compiled blocks; with "
                "training.compile=true it must be none, full, or every N"
            )
        if self.max_nonfinite < 0:
            raise ValueError(f"max_nonfinite is {self.max_nonfinite}; it must be at least 0")
        if self.skip_above is not None and self.skip_above <= 1:
            raise ValueError(f"skip_above is {self.skip_above}; it must be above 1, a multiple of the mean, or null")
        for name in ("threads", "validate_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                never = "; training.validation_windows=0 never validates" if name == "validate_every" else ""
                raise ValueError(f"{name} is {value}; it must be at least 1, or null{never}")
        if self.validation_windows is not None and self.validation_windows < 0:
            raise ValueError(
                f"validation_windows is {self.validation_windows}; it must be at least 0 (no validation), or null (all)"
            )
        if self.validate_every is not None and not self.validates:
            raise ValueError(
                f"validate_every is {self.validate_every}, but validation_windows is 0, which never validates; set "
                "training.validate_every=null, or more windows"
            )
        for name in ("clip", "max_minutes"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0, or null")
        if not 0 <= self.z_loss < float("inf"):
            raise ValueError(f"z_loss is {self.z_loss}; it must be a finite number of at least 0")
        if self.global_batch % self.micro_batch:
            below = self.global_batch - self.global_batch % self.micro_batch
            fits = f"{below} or {below + self.micro_batch}" if below else f"{self.micro_batch}"
            raise ValueError(
                f"global_batch is {self.global_batch}, not a multiple of micro_batch {self.micro_batch}; "
                f"{fits} would be"
            )

    @property
    def validates(self) -> bool:
        """Whether there is any validation, including the one at the end."""
        return self.validation_windows != 0

    @property
    def recompute_every(self) -> int | None:
        """`activation_checkpointing` as a number: 1 for every block, 2 for every second; None for none."""
        return _recompute_every(self.activation_checkpointing)

    @property
    def recompute_selectively(self) -> bool:
        """Whether blocks that are computed again keep the results of what takes long."""
        return self.activation_checkpointing == "selective"


def _recompute_every(text: str) -> int | None:
    if text in ("none", "selective", "full"):
        return None if text == "none" else 1
    match = re.fullmatch(r"every ([1-9]\d*)", text)
    if match is None:
        raise ValueError(
            f'activation_checkpointing is {text!r}; it must be none, selective, full, or every N, for example "every 2"'
        )
    return int(match[1])


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """AdamW (arXiv 1711.05101).

    Attributes:
        lr: the peak learning rate, reached after the schedule's warm-up.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the square root of the mean square.
        weight_decay: multiplied by the learning rate; matrices only (`LanguageModel.parameter_groups`).
    """

    kind: Literal["adamw"] = "adamw"
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        _check_optimizer(self)


@dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon for the matrices of the blocks, AdamW for the rest: see `dla_train.training.muon`.

    Attributes:
        lr: the peak learning rate of both, reached after the schedule's warm-up.
        momentum: of Muon.
        betas, eps: of AdamW.
        weight_decay: multiplied by the learning rate; matrices only, as with AdamW.
    """

    kind: Literal["muon"] = "muon"
    lr: float
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        _check_optimizer(self)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and below 1")


MOST_RATE = 1e38


def _check_optimizer(config: AdamWConfig | MuonConfig) -> None:
    if config.lr <= 0:
        raise ValueError(f"lr is {config.lr}; it must be above 0")
    if config.lr > MOST_RATE:
        raise ValueError(f"lr is {config.lr}; it must be at most {MOST_RATE:g}, what float32 can hold")
    if not all(0 <= beta < 1 for beta in config.betas):
        raise ValueError(f"betas are {list(config.betas)}; each must be at least 0 and below 1")
    if config.eps <= 0:
        raise ValueError(f"eps is {config.eps}; it must be above 0")
    if config.weight_decay < 0:
        raise ValueError(f"weight_decay is {config.weight_decay}; it must be at least 0")


OptimizerConfig = AdamWConfig | MuonConfig
"""What the recipe's `optimizer` may be; add further kinds with `|`."""
