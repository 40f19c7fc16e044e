"""What `dla-train estimate` makes of `strategy.replicas`, and what it refuses."""

import pytest

REPLICAS = "strategy={{kind: fsdp, replicas: {}}}"
TWO, THREE, NODES = (REPLICAS.format(replicas) for replicas in (2, 3, "nodes"))
EVERYTHING = "weights, gradients and optimizer states"


@pytest.fixture
def estimate(cli, micro_recipe):
    def run(*settings):
        return cli("estimate", "--recipe", micro_recipe, "--devices", "4", "training.micro_batch=1", *settings)

    return run


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([TWO], f"2 replicas of {EVERYTHING}, each divided among 2 devices (fsdp)"),
        ([TWO, "strategy.nodes=16"], f"2 replicas of {EVERYTHING}, each divided among 2 devices (fsdp)"),
        ([NODES, "strategy.nodes=2"], f"2 replicas of {EVERYTHING}, each divided among 2 devices (fsdp)"),
        ([NODES, "strategy.devices=1"], f"4 replicas of {EVERYTHING}, each on a device of its own (fsdp)"),
        ([NODES, "strategy.nodes=1"], f"each with a share of {EVERYTHING} (fsdp)"),
    ],
)
def test_it_says_how_many_replicas_there_are(estimate, settings, expected):
    done = estimate(*settings)
    assert done.code == 0, done.err
    assert f"on 4 x h100, 32-true, {expected}" in done.out


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([THREE], "strategy.replicas: it is 3, but 4 devices cannot form 3 groups of equal size"),
        (
            [NODES],
            "strategy.replicas: it is nodes, but nothing says on how many nodes the 4 devices are. Set strategy.",
        ),
        ([NODES, "strategy.devices=8"], "strategy.devices: it is 8, which does not divide 4 devices, and strategy."),
        ([NODES, "strategy.nodes=3"], "strategy.nodes: it is 3, which does not divide 4 devices, and strategy."),
    ],
)
def test_what_does_not_fit_is_named(estimate, settings, expected):
    done = estimate(*settings)
    assert done.code == 2
    assert expected in done.err


def test_fewer_replicas_are_advised_where_they_need_too_much_memory(cli):
    huge = ("estimate", "--recipe", "mamba2-dla-780m", "--devices", "4", "model.hidden=16384")
    assert "nearly fill it: fewer replicas than 2 (strategy.replicas), more devices, or" in cli(*huge, TWO).out
    assert "nearly fill it: more devices, or" in cli(*huge, "strategy=fsdp").out
