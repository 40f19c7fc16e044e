"""Which process this is among those of the run: as the launcher says, or decided here for a plain start."""

import os
import socket
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from dla_data.counted import counted
from dla_train.config.load import LoadedRecipe
from dla_train.distributed.shares import check_replicas, check_shares
from dla_train.errors import UsageError

Launcher = Literal["dla-train", "torchrun", "Slurm"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One process's place among all.

    Attributes:
        rank: of this process, over all nodes. local_rank: on its node.
        devices: processes per node. nodes: machines.
        address, port: where rank 0 listens.
        launcher: who started the processes; `dla-train` if nobody else did, so that it starts them itself.
        is_child: whether another `dla-train` started this one.
    """

    rank: int
    local_rank: int
    devices: int
    nodes: int
    address: str
    port: int
    launcher: Launcher
    is_child: bool = False

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes

    @property
    def has_to_launch(self) -> bool:
        """Whether this process has to start the others."""
        return self.launcher == "dla-train" and not self.is_child and self.devices > 1


_LAST_PORT = 65535

CHILD = "DLA_TRAIN_RANKS"
"""Environment variable of a process that `dla-train` started: `rank devices port`."""


def find_placement(loaded: LoadedRecipe) -> Placement:
    """This process's place, checked against the recipe.

    Raises:
        UsageError: the launcher started other numbers of processes than the recipe wants, batches cannot be divided
            among them, or they among replicas, or there are not enough GPUs.
    """
    placement = _launched() or _alone(loaded)
    _check(loaded, placement)
    return placement


def _launched() -> Placement | None:
    """The placement that a launcher has put into the environment; None without a launcher."""
    env = os.environ
    if CHILD in env:
        rank, devices, port = map(int, env[CHILD].split())
        return Placement(
            rank=rank,
            local_rank=rank,
            devices=devices,
            nodes=1,
            address="127.0.0.1",
            port=port,
            launcher="dla-train",
            is_child=True,
        )
    if "TORCHELASTIC_RUN_ID" in env:
        devices = _number("LOCAL_WORLD_SIZE", "torchrun", least=1)
        processes = _number("WORLD_SIZE", "torchrun", least=1)
        if processes % devices:
            raise UsageError(
                f"torchrun has started {processes} processes, {devices} of them on this node, but each node must have "
                "as many as any other. Give all the same --nproc-per-node."
            )
        return Placement(
            rank=_number("RANK", "torchrun"),
            local_rank=_number("LOCAL_RANK", "torchrun"),
            devices=devices,
            nodes=processes // devices,
            address=env["MASTER_ADDR"],
            port=_number("MASTER_PORT", "torchrun", least=1, most=_LAST_PORT),
            launcher="torchrun",
        )
    if SLURMEnvironment.detect():
        # Before Lightning reads the same variables.
        processes = _number("SLURM_NTASKS", "Slurm", least=1)
        nodes = _number("SLURM_NNODES", "Slurm", least=1) if "SLURM_NNODES" in env else 1
        if "SLURM_JOB_ID" in env:
            _number("SLURM_JOB_ID", "Slurm")
        if "MASTER_PORT" in env:
            _number("MASTER_PORT", None, least=1, most=_LAST_PORT)
        try:
            slurm = SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:  # --ntasks without --ntasks-per-node
            raise UsageError(f"srun started this in a way that Lightning does not take: {error}") from error
        rank, local_rank = _number("SLURM_PROCID", "Slurm"), _number("SLURM_LOCALID", "Slurm")
        if processes % nodes:
            raise UsageError(
                f"srun has started {processes} processes on {nodes} nodes, but each node must have as many as any "
                "other. Leave out --ntasks, and give --nodes and --ntasks-per-node."
            )
        _require_blocks(rank, local_rank, processes // nodes)
        return Placement(
            rank=rank,
            local_rank=local_rank,
            devices=processes // nodes,
            nodes=nodes,
            address=slurm.main_address,
            port=slurm.main_port,
            launcher="Slurm",
        )
    return None


def _require_blocks(rank: int, local_rank: int, devices: int) -> None:
    """Refuse ranks that Slurm has dealt out to the nodes in turn, as some clusters do by default. Lightning takes those
    of a node to follow each other, and so do groups of ranks that should be on one node.

    Raises:
        UsageError: says what to ask of srun.
    """
    on_this_node = os.environ.get("SLURM_GTIDS", "")  # like `0,2`: there, every rank sees it
    ranks = [int(number) for number in on_this_node.split(",") if number.isdecimal()]
    if rank % devices == local_rank and all(after - before == 1 for before, after in pairwise(ranks)):
        return
    raise UsageError(
        f"srun has started the ranks {on_this_node or rank} on this node, but those of a node must follow each other, "
        f"{devices} on each. Start them with srun --distribution=block; the cluster's default may be another one."
    )


def _number(name: str, launcher: Launcher | None, least: int = 0, most: int | None = None) -> int:
    """A whole number in the environment, `least` to `most`; `launcher` puts it there (None: the user).

    Raises:
        UsageError: it is missing or another one.
    """
    given = os.environ.get(name)
    try:
        number = int(given or "")
    except ValueError:
        number = None
    if number is not None and least <= number and (most is None or number <= most):
        return number
    state = "is not set" if given is None else f"is '{given}'"
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
    advice = f"{launcher} sets it for each process: leave it as it is there" if launcher else "Choose one, or unset it"
    raise UsageError(f"the environment variable {name} {state}; it must be a whole number {allowed}. {advice}.")


def _alone(loaded: LoadedRecipe) -> Placement:
    strategy, accelerator = loaded.recipe.strategy, loaded.recipe.training.accelerator
    if (processes := os.environ.get("WORLD_SIZE") or "1") != "1":
        raise UsageError(
            f"the environment variable WORLD_SIZE says that this is one of {processes} processes, but neither torchrun "
            "nor srun has started it. Start the processes with one of them, or unset WORLD_SIZE if this is the only "
            "one."
        )
    if (strategy.nodes or 1) > 1:
        raise loaded.problem(
            "strategy.nodes",
            f"it is {strategy.nodes}, but nothing has started processes on other nodes. Use `dla-train submit`, srun, "
            "or torchrun on every node.",
        )
    gpus = 0 if accelerator == "cpu" else torch.cuda.device_count()
    return Placement(
        rank=0,
        local_rank=0,
        devices=strategy.devices or gpus or 1,
        nodes=1,
        address="127.0.0.1",
        port=_free_port(),
        launcher="dla-train",
    )


def _check(loaded: LoadedRecipe, placement: Placement) -> None:
    strategy, training = loaded.recipe.strategy, loaded.recipe.training
    if strategy.kind == "single" and placement.world_size > 1:
        raise loaded.problem(
            "strategy.kind",
            f"it is single, but {placement.launcher} started {placement.world_size} processes. Use strategy=ddp, or "
            "start one.",
        )
    for name in ("devices", "nodes"):
        wanted, found = getattr(strategy, name), getattr(placement, name)
        if wanted is not None and wanted != found:
            per = " per node" if name == "devices" else ""
            what = counted(found, "process" if name == "devices" else "node")
            raise loaded.problem(
                f"strategy.{name}",
                f"it is {wanted}, but {placement.launcher} started {what}{per}. Make them equal, or set null.",
            )
    processes = counted(placement.world_size, "process")
    check_shares(loaded, placement.world_size, processes)
    check_replicas(loaded, placement.world_size, processes)
    if training.accelerator != "cpu" and placement.devices > torch.cuda.device_count() > 0:
        raise loaded.problem(
            "strategy.devices",
            f"{placement.devices} processes need a GPU each, and this node has {torch.cuda.device_count()}. Use no "
            "more, or training.accelerator=cpu. (Each process must see all GPUs of its node: no --gpus-per-task or "
            "--gpu-bind.)",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
