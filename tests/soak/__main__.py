"""`make soak`: hits a run of two ranks at 50 random moments and shows that nothing was lost and nothing repeated.

About 20 seconds for each hit on two cores. The folder of the runs is removed afterwards, unless something differs.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.soak.disturbed_run import DisturbedRun, Hit, SoakFailure


def main() -> int:
    """Returns the exit code: 0 where both runs are the same."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many starts are hit (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    run = DisturbedRun(folder, options.kills, options.seed)
    began = time.monotonic()
    try:
        print(f"undisturbed: {run.steps} steps in {run.whole():.0f} s", flush=True)
        for number in range(1, options.kills + 1):
            hit = run.hit()
            print(f"{number:3}  {_line(hit)}", file=sys.stderr, flush=True)
        hits = run.finish()
        wrong = [*run.differences(), *run.excesses(hits)]
    except SoakFailure as failure:
        print(f"FAILED: {failure}\nThe runs are in {folder}.")
        return 1
    print(report(run, hits, time.monotonic() - began))
    for text in wrong:
        print(f"DIFFERENT: {text}")
    if wrong:
        print(f"The runs are in {folder}.")
        return 1
    shutil.rmtree(folder)
    return 0


def report(run: DisturbedRun, hits: list[Hit], seconds: float) -> str:
    """What was hit when, and the chains at the end, as Markdown."""
    lines = [
        "",
        "| hit | drawn moment | signal, to | rank 0 was at | rank 1 was at | exit code of rank 0 | steps done again |",
        "| --: | --- | --- | --- | --- | --: | --: |",
    ]
    for number, hit in enumerate(hits, start=1):
        cells = (number, hit.wanted, f"{hit.number.name}, {hit.whom}", *hit.places, hit.code, hit.again)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    at = Counter(hit.places[0].split()[0] for hit in hits)
    lines += [
        "",
        f"{len(hits)} hits in {seconds / 60:.0f} minutes; rank 0 was at "
        + ", ".join(f"{k} {n}" for k, n in at.items()),
    ]
    for name in ("undisturbed", "disturbed"):
        lines.append(f"chain of the tokens, {name}: " + ", ".join(link[:32] for link in run.chains(name)))
    return "\n".join(lines)


def _line(hit: Hit) -> str:
    return f"{hit.wanted}: {hit.number.name} to {hit.whom} at {' / '.join(hit.places)}; exit code {hit.code}"


if __name__ == "__main__":
    sys.exit(main())
