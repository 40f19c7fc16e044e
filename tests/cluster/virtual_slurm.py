"""A Slurm of our own: munged, slurmctld and two virtual nodes, all below one folder and gone with the tests.

Each node lives in its own process, mount and host name spaces: it has a name (n1, n2) and its own /etc/hosts, and
killing one process is a loss of power. Where such spaces are refused (a container without CAP_SYS_ADMIN) there is one
node without them, and tests that need two are skipped.
"""

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client munge"
PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "unshare", "setpriv")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits: 120 s if not set, or set below 5
AuthInfo=socket={home}/munge.socket,cred_expire=5
# Not NoInAddrAny: srun would listen where the steps do not call.
CommunicationParameters=NoCtldInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# processors and memory as written here, not as in the machine
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MinJobAge=3600
# Ranks meet at a port that follows from the job's number: other Slurms of this machine must have others.
FirstJobId={first_job}
"""
PARTITIONS = """\
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""
SPACES = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
# $1: the node, $2: its hosts file. The shell stays, as process 1 of the node.
NODE = 'hostname "$1" && mount --bind "$2" /etc/hosts && slurmd -D -N "$1" & wait $!'


class CannotRun(Exception):
    """There can be no Slurm here; says why."""


class VirtualSlurm:
    """The daemons, and what a test may do to them.

    Args:
        home: an empty folder.
    Attributes:
        environment: for commands that are to find this Slurm.
        nodes: their names.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        if missing := [name for name in PROGRAMS if shutil.which(name, path=search) is None]:
            raise CannotRun(f"no {missing[0]}: apt-get install {PACKAGES}")
        if os.geteuid() != 0:
            raise CannotRun("a Slurm of our own needs root")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment |= {"PATH": search, "SLURM_CONF": f"{home}/slurm.conf"}
        self._has_spaces = subprocess.run([*SPACES, "true"], capture_output=True).returncode == 0
        self.nodes = ("n1", "n2") if self._has_spaces else ("n1",)
        self._daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start everything.

        Raises:
            CannotRun: a daemon does not come up; with the end of the logs.
        """
        home = self.home
        self._write_configuration()
        places = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        paths = [f"--{option}={home}/{name}" for option, name in places.items()]
        self._start("munged", "munged", "--foreground", *paths, f"--seed-file={home}/seed")
        self._wait_for("munged", lambda: self._answer("munge", "-n", f"--socket={home}/munge.socket"))
        self._start("slurmctld", "slurmctld", "-D")
        self._wait_for("slurmctld", lambda: " is UP" in self._answer("scontrol", "ping"))
        for node in self.nodes:
            self.start_node(node)

    def stop(self) -> None:
        """End the jobs, then the daemons."""
        if "slurmctld" in self._daemons:
            self._answer("scancel", "--user=root")
            deadline = time.monotonic() + 15
            while self._answer("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.1)
        for name in list(reversed(self._daemons)):
            self._end(name)

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command; returns its standard output, and fails where it does."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout

    def start_node(self, node: str) -> None:
        """Switch a node on, and wait until Slurm may use it."""
        (self.home / "spool" / node).mkdir(parents=True, exist_ok=True)
        slurmd = ("slurmd", "-D", "-N", node)
        inside = (*SPACES, "bash", "-c", NODE, "node", node, f"{self.home}/hosts")
        self._start(node, *(inside if self._has_spaces else slurmd))
        # A job that waited for it may have it already.
        ready = {"idle\n", "mixed\n", "allocated\n"}
        self._wait_for(node, lambda: self._answer("sinfo", "-h", "-N", "-n", node, "-p", "low", "-o", "%T") in ready)

    def lose_node(self, node: str) -> None:
        """Power off, noticed at once (unnoticed, Slurm waits for SlurmdTimeout and then does the same)."""
        self._end(node)
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=power")

    def unshare(self, node: str, folder: Path) -> None:
        """Give the node, for its life, an empty file system of its own at `folder`, in place of what all share."""
        inside = ("nsenter", f"--target={self._daemons[node].pid}", "--mount")
        self.call(*inside, "mount", "-t", "tmpfs", "none", str(folder))

    def _write_configuration(self) -> None:
        home = self.home
        for folder in (home, *home.parents[:2]):
            folder.chmod(0o755)  # munge insists that nobody else may write
        (home / "state").mkdir()
        (home / "munge.key").write_bytes(os.urandom(1024))
        (home / "munge.key").chmod(0o400)
        addresses = {node: f"127.0.1.{number}" for number, node in enumerate(self.nodes, 1)}
        names = "".join(f"{address} {node}\n" for node, address in addresses.items())
        (home / "hosts").write_text(Path("/etc/hosts").read_text() + "\n" + names)
        port, *ports = _free_ports(1 + len(self.nodes))
        here = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={node} NodeHostname={node if self._has_spaces else here} NodeAddr={addresses[node]} "
            f"Port={node_port} CPUs=8 RealMemory=16000 State=UNKNOWN\n"
            for node, node_port in zip(self.nodes, ports, strict=True)
        ]
        text = (
            CONFIGURATION.format(home=home, port=port, first_job=random.randrange(1, 9000))
            + "".join(lines)
            + PARTITIONS
        )
        (home / "slurm.conf").write_text(text)

    def _start(self, name: str, *command: str) -> None:
        # Its own session: Ctrl-C is for pytest, which then stops it. Killed with pytest, however that ends.
        with open(self.home / f"{name}.out", "a") as out:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        if name in self.nodes and self._has_spaces:
            daemon.kill()  # everything in the node dies with it
        else:
            daemon.terminate()
        daemon.wait(30)

    def _answer(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout if done.returncode == 0 else ""

    def _wait_for(self, name: str, is_up: Callable[[], object], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not is_up():
            if time.monotonic() > deadline or self._daemons[name].poll() is not None:
                logs = [*self.home.glob("*.log"), *self.home.glob("*.out")]
                ends = [f"{path.name}: {path.read_text()[-500:]}" for path in logs]
                raise CannotRun(f"{name} does not come up here\n" + "\n".join(ends))
            time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()
