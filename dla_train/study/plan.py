"""The runs of the study, and their order."""

from collections.abc import Iterator
from dataclasses import dataclass

from dla_train.errors import UsageError

BACKBONES: dict[str, tuple[str, tuple[int, ...]]] = {"mamba2": ("state_dim", (8, 16)), "gdn": ("key_dim", (4, 8))}
"""Backbones: the mixer's field that sets the size of a state, and the sizes. The delta rule stores as many pairs
without loss as a key has dimensions, plain summation far fewer: at 8 the former holds all pairs, the latter none too
well."""

# A boundary at every fifth token: enough for the needles, but too few to fill the slots with single tokens.
_STEERED = ("model.mixer.memory.calibrate_rate=0.2", "model.mixer.memory.steer=0.1")

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "single": ("single", ()),
    "fixed": ("fixed", ()),
    "loglinear": ("loglinear", ()),
    "dla": ("dla", ()),
    "dla steered": ("dla", _STEERED),
    "dla steered hard": ("dla", (*_STEERED, "model.mixer.memory.gate=hard")),
}
"""The variants compared: the ending of the recipe's name, and settings on top of it."""

TASKS: dict[str, tuple[str, ...]] = {
    "mqar": (),
    "change_point": (
        # Two needles per segment give as many questions as mqar has. Themes of two words make the changes learnable.
        "data.task={kind: change_point, segments: [2, 4], needles: 2, shortest: 6, themes: 16}",
        "data.vocab_size=64",
    ),
}
"""Tasks, and the settings that turn the mqar recipes into theirs."""


@dataclass(frozen=True)
class StudyRun:
    """One run of the study.

    Attributes:
        task, backbone, variant: keys of `TASKS`, `BACKBONES` and `VARIANTS`. state: the key width of a state (K).
        seed: of the run. steps: of the run; None keeps the recipe's.
    """

    task: str
    backbone: str
    variant: str
    state: int
    seed: int
    steps: int | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        steps = f"-{self.steps}steps" if self.steps else ""
        return f"{self.task}-{self.backbone}-{self.variant.replace(' ', '-')}-k{self.state}-seed{self.seed}{steps}"

    @property
    def recipe(self) -> str:
        """The shipped recipe that it starts from."""
        return f"mqar-{self.backbone}-{VARIANTS[self.variant][0]}"

    @property
    def settings(self) -> list[str]:
        """The settings on top of the recipe."""
        size = f"model.mixer.{BACKBONES[self.backbone][0]}={self.state}"
        steps = [] if self.steps is None else [f"training.steps={self.steps}"]
        return [*TASKS[self.task], *VARIANTS[self.variant][1], size, f"seed={self.seed}", *steps]


def study_runs(
    tasks: list[str],
    backbones: list[str],
    variants: list[str],
    states: list[int] | None,
    seeds: int,
    steps: int | None,
) -> Iterator[StudyRun]:
    """All combinations, seed by seed, so that the runs done so far can always be compared.

    Args:
        tasks, backbones, variants: keys. states: sizes of a state; None takes each backbone's own.
        seeds: number of runs of each combination. steps: of every run; None keeps the recipe's.
    Raises:
        UsageError: an unknown task, backbone or variant.
    """
    for what, given, known in (
        ("task", tasks, TASKS),
        ("backbone", backbones, BACKBONES),
        ("variant", variants, VARIANTS),
    ):
        for name in given:
            if name not in known:
                raise UsageError(f"there is no {what} '{name}' in the study; there are {', '.join(known)}.")
    for seed in range(seeds):
        for backbone in backbones:
            for state in states or BACKBONES[backbone][1]:
                for task in tasks:
                    for variant in variants:
                        yield StudyRun(task, backbone, variant, state, seed, steps)
