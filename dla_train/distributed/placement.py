"""Which process this is among those of the run: as the launcher says, or decided here for a plain start."""

import os
import socket
from dataclasses import dataclass
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
        devices = int(env["LOCAL_WORLD_SIZE"])
        return Placement(
            rank=int(env["RANK"]),
            local_rank=int(env["LOCAL_RANK"]),
            devices=devices,
            nodes=int(env["WORLD_SIZE"]) // devices,
            address=env["MASTER_ADDR"],
            port=int(env["MASTER_PORT"]),
            launcher="torchrun",
        )
    if SLURMEnvironment.detect():
        try:
            slurm = SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:  # --ntasks without --ntasks-per-node
            raise UsageError(f"srun started this in a way that Lightning does not take: {error}") from error
        nodes = int(env.get("SLURM_NNODES", 1))
        return Placement(
            rank=slurm.global_rank(),
            local_rank=slurm.local_rank(),
            devices=slurm.world_size() // nodes,
            nodes=nodes,
            address=slurm.main_address,
            port=slurm.main_port,
            launcher="Slurm",
        )
    return None


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
