"""Where a process stands, and launchers that do not fit the recipe."""

import pytest
import torch

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.distributed.config import FSDPConfig
from dla_train.distributed.placement import find_placement
from dla_train.errors import UsageError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x",
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "dla-run",
    "SLURM_NODELIST": "n[1-2]",
}


@pytest.fixture
def place(micro_recipe, monkeypatch):
    def find_it(env, *settings):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        settings = ("training.global_batch=16", "training.micro_batch=1", *settings)
        return find_placement(load(find(str(micro_recipe)), settings))

    return find_it


@pytest.mark.parametrize(("env", "launcher"), [(TORCHRUN, "torchrun"), (SLURM, "Slurm")])
def test_the_launcher_says_which_process_this_is(place, env, launcher):
    found = place(env, "strategy=ddp")
    assert (found.rank, found.local_rank, found.devices, found.nodes) == (5, 1, 4, 2)
    assert (found.launcher, found.world_size, found.has_to_launch) == (launcher, 8, False)
    assert found.address == ("node1" if env is TORCHRUN else "n1")


def test_a_plain_start_launches_the_others_itself(place):
    found = place({}, "strategy={kind: ddp, devices: 2}")
    assert (found.rank, found.world_size, found.has_to_launch) == (0, 2, True)
    assert place({}, "strategy=ddp").world_size == 1, "no GPU here: one process"


@pytest.mark.parametrize(("replicas", "expected"), [("nodes", 2), (1, 1), (8, 8)])
def test_replicas_that_divide_the_processes_are_accepted(place, micro_recipe, replicas, expected):
    setting = f"strategy={{kind: fsdp, replicas: {replicas}}}"
    strategy = load(find(str(micro_recipe)), [setting]).recipe.strategy
    assert isinstance(strategy, FSDPConfig)
    assert strategy.replicas_on(place(SLURM, setting).nodes) == expected


@pytest.mark.parametrize("accelerator", ["auto", "gpu"])
def test_more_processes_than_gpus_are_refused_unless_they_need_none(place, monkeypatch, accelerator):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes need a GPU each, and this node has 1"):
        place({}, "strategy={kind: ddp, devices: 2}", f"training.accelerator={accelerator}")
    assert place({}, "strategy={kind: ddp, devices: 2}", "training.accelerator=cpu").world_size == 2


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (TORCHRUN, [], "strategy.kind: it is single, but torchrun started 8 processes. Use strategy=ddp"),
        (SLURM, ["strategy={kind: ddp, devices: 2}"], "it is 2, but Slurm started 4 processes per node."),
        (SLURM, ["strategy={kind: ddp, nodes: 1}"], "strategy.nodes: it is 1, but Slurm started 2 nodes."),
        ({}, ["strategy={kind: ddp, nodes: 2}"], "it is 2, but nothing has started processes on other nodes."),
        ({}, ["strategy={kind: ddp, devices: 3}"], "it is 16, which 3 processes cannot share out"),
        (SLURM, ["strategy=ddp", "training.micro_batch=4"], "training.micro_batch=2 would fit"),
        (
            SLURM,
            ["strategy={kind: fsdp, replicas: 3}"],
            "strategy.replicas: it is 3, but 8 processes cannot form 3 groups",
        ),
        (TORCHRUN, ["strategy={kind: fsdp, replicas: 16}"], "It may be 1, 2, 4, 8, or nodes (one replica per node)."),
        ({}, ["strategy={kind: fsdp, replicas: 2}"], "it is 2, but 1 process cannot form 2 groups of equal size"),
        ({}, ["strategy={kind: fsdp, replicas: 0}"], "strategy.replicas is 0; it must be at least 1, or nodes (one re"),
        ({}, ["strategy={kind: fsdp, replicas: node}"], "replicas must be a whole number or nodes, but is 'node'."),
        ({}, ["strategy={kind: fsdp, replicas: 1.5}"], "replicas must be a whole number or nodes, but is 1.5."),
        ({}, ["strategy={kind: fsdp, replicas: null}"], "replicas must be a whole number or nodes, but is null."),
        ({}, ["strategy={kind: ddp, devices: 0}"], "strategy.devices is 0; it must be at least 1, or null"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ["strategy=ddp"], "WORLD_SIZE says that this is one of 2 processes, but"),
        (
            SLURM | {"SLURM_NTASKS": "7"},
            ["strategy=ddp"],
            "srun has started 7 processes on 2 nodes, but each node must",
        ),
        (TORCHRUN | {"WORLD_SIZE": "7"}, ["strategy=ddp"], "torchrun has started 7 processes, 4 of them on this node,"),
        ({}, ["strategy=dpd"], "must be one of single, ddp, deepspeed, fsdp"),
    ],
)
def test_what_does_not_fit_is_named(place, env, settings, message):
    with pytest.raises(UsageError) as error:
        place(env, *settings)
    assert message in str(error.value)


def test_srun_with_ntasks_alone_is_refused_plainly(place):
    with pytest.raises(UsageError, match="srun started this in a way that Lightning does not take: You set `--ntasks"):
        place({name: value for name, value in SLURM.items() if name != "SLURM_NTASKS_PER_NODE"}, "strategy=ddp")


@pytest.mark.parametrize(
    ("rank", "local_rank", "on_this_node"),
    [(0, 0, "0,2,4,6"), (5, 2, "1,3,5,7"), (7, 3, "1,3,5,7"), (3, 1, None), (2, 2, "0,1,2,4"), (6, 2, "2,3,6,7")],
)
def test_ranks_that_slurm_has_dealt_out_to_the_nodes_in_turn_are_refused(place, rank, local_rank, on_this_node):
    env = SLURM | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local_rank)}
    named = on_this_node or rank
    env |= {} if on_this_node is None else {"SLURM_GTIDS": on_this_node}
    with pytest.raises(UsageError, match=rf"the ranks {named} on this node, .* 4 on each\. .* --distribution=block;"):
        place(env, "strategy=ddp")


def test_ranks_in_blocks_are_taken(place):
    assert place(SLURM | {"SLURM_GTIDS": "4,5,6,7"}, "strategy=ddp").rank == 5


@pytest.mark.parametrize(
    ("env", "name", "value", "message"),
    [
        (SLURM, "MASTER_PORT", "abc", "'abc'; it must be a whole number from 1 to 65535. Choose one, or unset it."),
        (SLURM, "MASTER_PORT", "70000", "'70000'; it must be a whole number from 1 to 65535."),
        (
            SLURM,
            "SLURM_NNODES",
            "two",
            "'two'; it must be a whole number of at least 1. Slurm sets it for each process",
        ),
        (SLURM, "SLURM_NTASKS", "", "''; it must be a whole number of at least 1."),
        (SLURM, "SLURM_PROCID", "-1", "'-1'; it must be a whole number of at least 0."),
        (SLURM, "SLURM_LOCALID", "x", "'x'; it must be"),
        (SLURM, "SLURM_JOB_ID", "12_a", "'12_a'; it must be"),
        (TORCHRUN, "MASTER_PORT", "abc", "'abc'; it must be a whole number from 1 to 65535. torchrun sets it for each"),
        (TORCHRUN, "LOCAL_WORLD_SIZE", "0", "'0'; it must be a whole number of at least 1."),
        (TORCHRUN, "WORLD_SIZE", "8.0", "'8.0'; it must be"),
        (TORCHRUN, "RANK", "first", "'first'; it must be"),
        (TORCHRUN, "LOCAL_RANK", "", "''; it must be"),
    ],
)
def test_a_variable_that_is_no_number_is_named(place, env, name, value, message):
    with pytest.raises(UsageError) as error:
        place(env | {name: value}, "strategy=ddp")
    assert f"the environment variable {name} is {message}" in str(error.value)


def test_a_variable_that_torchrun_would_have_set_is_named(place):
    with pytest.raises(UsageError, match="the environment variable RANK is not set; it must be a whole number of at "):
        place({name: value for name, value in TORCHRUN.items() if name != "RANK"}, "strategy=ddp")


def test_under_slurm_a_port_may_be_chosen(place):
    assert place(SLURM | {"MASTER_PORT": "23456"}, "strategy=ddp").port == 23456
