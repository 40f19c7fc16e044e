"""Executes compiled kernels at random shapes, types, plans, documents and GPUs, and compares with `torch` in float64.

    python -m tests.kernels.random_cases [--minutes 10] [--seed 0] [--only SEED]

The exit code is 1 if a case was wrong; each line about one begins with the seed to give to `--only`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import asdict, dataclass

import torch

from tests.kernels import compiled_cases as cases
from tests.kernels.executor.launch import executing

LARGE = 2**18
"""If the states of a head have at least so many numbers, sequences are kept short."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is read, and the GPU that the kernels are compiled for."""

    target: str
    kind: str
    time: int
    slots: int
    delta: bool
    groups: int
    heads: int
    key_dim: int
    value_dim: int
    documents: tuple[int, ...] | None
    batch: int
    type: str
    cached: bool
    decay: bool

    @staticmethod
    def drawn(seed: int) -> Case:
        draw = random.Random(seed)
        kind = draw.choice(["dynamic", "dynamic", "dynamic", "fenwick", "fixed", "single"])
        slots = 1 if kind == "single" else draw.choice([1, 2, 3, 5, 8, 15, 30, 31, 33, 64])
        groups = draw.choice([1, 1, 2, 3])
        key_dim = draw.choice([16, 17, 24, 64, 65, 100, 128, 130])
        value_dim = draw.choice([16, 20, 33, 64, 96, 128, 200])
        longest = 400 if key_dim * value_dim * slots > LARGE else 1100
        length = draw.randint(1, 90) if draw.random() < 0.3 else draw.randint(60, longest)
        documents = None
        if draw.random() < 0.4 and length > 4:
            cuts = draw.sample(range(1, length), draw.randint(1, min(8, length - 1)))
            documents = (0, *sorted(cuts), length)
        return Case(
            target=draw.choice(["sm_80", "sm_90", "sm_90", "sm_100", "sm_120"]),
            kind=kind,
            time=length,
            slots=slots,
            delta=draw.random() < 0.5,
            groups=groups,
            heads=groups * draw.choice([1, 1, 2, 3]),
            key_dim=key_dim,
            value_dim=value_dim,
            documents=documents,
            batch=1 if documents else draw.choice([1, 1, 2]),
            type=draw.choice(["float32", "float16", "bfloat16"]),
            cached=draw.random() < 0.4,
            decay=draw.random() < 0.85,
        )

    def check(self, seed: int) -> None:
        """Raises AssertionError where a result is wrong."""
        with executing(self.target):
            cases.check_reading(
                "cpu", self.kind, self.time, self.slots, getattr(torch, self.type),
                cu_seqlens=None if self.documents is None else torch.tensor(self.documents), cached=self.cached,
                delta=self.delta, decay=self.decay, batch=self.batch, heads=self.heads, groups=self.groups,
                key_dim=self.key_dim, value_dim=self.value_dim, seed=seed,
            )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute compiled kernels on random cases.")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no case after this many (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the first case (0)")
    parser.add_argument("--only", type=int, help="run the case of this seed alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    end = time.monotonic() + 60 * arguments.minutes
    seed, wrong, done = arguments.seed if arguments.only is None else arguments.only, 0, 0
    while done == 0 or (arguments.only is None and time.monotonic() < end):
        case = Case.drawn(seed)
        try:
            case.check(seed)
        except Exception as error:
            wrong += 1
            print(f"{seed}: {type(error).__name__}: {error}\n    {asdict(case)}", flush=True)
        seed, done = seed + 1, done + 1
    print(f"{done} cases, {wrong} of them wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
