"""Which runs the study has, and in which order."""

from collections.abc import Iterator
from dataclasses import dataclass

from dla_train.errors import UsageError

BACKBONES: dict[str, tuple[str, tuple[int, ...]]] = {"mamba2": ("state_dim", (8, 16)), "gdn": ("key_dim", (4, 8))}
"""Backbones: the field of the mixer that sets the size of a state, and the sizes. The delta rule stores as many pairs
as a key has dimensions without loss, adding up far fewer: at 8 the one holds all, the other none too well."""

# A boundary at every fifth token: enough for the needles, too few to fill the slots with single tokens.
_STEERED = ("model.mixer.memory.calibrate_rate=0.2", "model.mixer.memory.steer=0.1")

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "single": ("single", ()),
    "fixed": ("fixed", ()),
    "loglinear": ("loglinear", ()),
    "dla": ("dla", ()),
    "dla steered": ("dla", _STEERED),
    "dla steered hard": ("dla", (*_STEERED, "model.mixer.memory.gate=hard")),
}
"""What is compared: a recipe's ending, and what is set on top of it."""

TASKS: dict[str, tuple[str, ...]] = {
    "mqar": (),
    "change_point": (
        # Two needles to a segment: as many questions as mqar has. Themes of two words: what changes can be learned.
        "data.task={kind: change_point, segments: [2, 4], needles: 2, shortest: 6, themes: 16}",
        "data.vocab_size=64",
    ),
}
"""Tasks, and what is set to turn the mqar recipes into theirs."""


@dataclass(frozen=True)
class StudyRun:
    """One training.

    Attributes:
        task, backbone, variant: keys of `TASKS`, `BACKBONES` and `VARIANTS`. state: the size of a state (K).
        seed: of the run. steps: of the run; None leaves the recipe's.
    """

    task: str
    backbone: str
    variant: str
    state: int
    seed: int
    steps: int | None = None

    @property
    def name(self) -> str:
        """A folder name."""
        steps = f"-{self.steps}steps" if self.steps else ""
        return f"{self.task}-{self.backbone}-{self.variant.replace(' ', '-')}-k{self.state}-seed{self.seed}{steps}"

    @property
    def recipe(self) -> str:
        """A shipped recipe."""
        return f"mqar-{self.backbone}-{VARIANTS[self.variant][0]}"

    @property
    def settings(self) -> list[str]:
        """What is set on top of the recipe."""
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
    """All combinations, seed by seed, so that whatever is done so far compares like with like.

    Args:
        tasks, backbones, variants: keys. states: sizes of a state; None takes each backbone's own.
        seeds: runs of each kind. steps: of every run; None leaves the recipe's.
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
