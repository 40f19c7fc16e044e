"""How many processors this process may use."""

import os


def usable_cores() -> int:
    """Those that the scheduler lets it run on, as Slurm and containers restrict them; where the system cannot say
    (macOS), all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
