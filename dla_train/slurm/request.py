"""The resources that a run requests of the cluster, checked before Slurm sees them."""

import re
from dataclasses import dataclass

# Allowed inside `#SBATCH --name=value`, where Slurm splits at blanks and interprets quotes, backslashes and `#`.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:=@/+*&|()\[\]-]+")
_TIME = re.compile(r"\d+|\d+:\d{2}|\d+:\d{2}:\d{2}|\d+-\d{1,2}(:\d{2}){0,2}")


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """Nodes, time and the like; every field is an option of `dla-train submit`.

    Attributes:
        nodes: how many. gpus_per_node: GPUs and processes on each; 0 trains on the CPU, one process per node.
        partition, account, qos, constraint, mem: as `sbatch` takes them; None leaves the cluster's default.
        time: limit of one start, in Slurm's notation: `MINUTES`, `H:MM:SS`, `D-HH:MM` and the like.
        cpus_per_task: CPU cores of each process.
        warn_seconds: how long before the time limit SIGUSR1 is sent; a step and a save must fit in.
        requeue_limit: how often the job goes back into the queue after a failed process.
    """

    nodes: int
    gpus_per_node: int
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    mem: str | None = None
    time: str | None = None
    cpus_per_task: int | None = None
    warn_seconds: int = 120
    requeue_limit: int = 3

    def __post_init__(self) -> None:
        for name, least in {
            "nodes": 1,
            "gpus_per_node": 0,
            "cpus_per_task": 1,
            "warn_seconds": 30,
            "requeue_limit": 0,
        }.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{_option(name)} is {value}; it must be at least {least}")
        if self.warn_seconds > 65535:
            raise ValueError(f"--warn-seconds is {self.warn_seconds}; Slurm takes at most 65535")
        for name in ("partition", "account", "qos", "constraint", "mem"):
            if (value := getattr(self, name)) is not None and not _PLAIN.fullmatch(value):
                raise ValueError(
                    f"{_option(name)} is {value!r}; it must be letters, digits and "
                    "the signs _ . , : = @ / + * & | ( ) [ ] -"
                )
        if self.time is not None:
            self._check_time(self.time)

    @property
    def tasks_per_node(self) -> int:
        """Processes on each node."""
        return max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks_per_node

    def directives(self, job_name: str) -> list[str]:
        """The `#SBATCH` lines; characters of `job_name` that Slurm might misread are replaced."""
        options = {
            # Prefixed also because Lightning takes a job named `bash` for an interactive one.
            "job-name": "dla-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", job_name).strip("-."),
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task,
            "mem": self.mem,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            # Sent to the processes, not to the script; may come up to a minute early.
            "signal": f"USR1@{self.warn_seconds}",
            "open-mode": "append",
        }
        lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
        return [*lines, "#SBATCH --requeue"]

    def _check_time(self, time: str) -> None:
        if not _TIME.fullmatch(time):
            raise ValueError(
                f"--time is {time!r}; it must be MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, "
                "DAYS-HOURS:MINUTES or DAYS-HOURS:MINUTES:SECONDS"
            )
        if (seconds := seconds_of(time)) <= self.warn_seconds:
            raise ValueError(
                f"--time is {time} ({seconds} s), but the warning comes {self.warn_seconds} s before the end: nothing "
                "would be trained. Ask for more time, or lower --warn-seconds"
            )


def seconds_of(time: str) -> int:
    """A time limit in Slurm's notation, as seconds: `90` is 90 minutes, `1-2` is 26 hours."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
