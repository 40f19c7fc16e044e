"""`dla-train estimate`, as a user sees it."""

import subprocess
import sys
import time

import pytest

from dla_train.config.catalog import shipped


def test_it_answers_in_seconds_without_data_or_device(cli, tmp_path):
    began = time.monotonic()
    done = cli("estimate", "--recipe", "mamba2-dla-780m", "--devices", "8", "--device", "H200")
    assert time.monotonic() - began < 20
    assert done.code == 0
    assert done.err == ""
    assert "| total             | 848,704,752 |       |" in done.out
    assert "on 8 x h200, bf16-mixed" in done.out
    assert not list(tmp_path.iterdir())


def test_a_linear_model_has_no_softmax_term(cli):
    assert "softmax" not in cli("estimate", "--recipe", "gdn-dla-790m").out
    assert "softmax" in cli("estimate", "--recipe", "transformer-780m").out


def test_a_setting_changes_the_estimate(cli):
    paper = cli("estimate", "--recipe", "mamba2-dla-780m").out
    matched = cli("estimate", "--recipe", "mamba2-dla-780m", "model.mixer.memory.capacity=15").out
    assert "| slot weights      |  46,478,880 |" in paper
    assert "| slot weights      |  23,239,440 |" in matched


def test_twice_the_utilization_is_half_the_time(cli):
    def days(share: str) -> float:
        out = cli("estimate", "--recipe", "gdn-1.3b", "--utilization", share).out
        line = next(line for line in out.splitlines() if "the whole run  " in line)
        return float(line.split("|")[2].split(" days")[0])

    assert days("0.2") == pytest.approx(2 * days("0.4"), rel=0.02)


def test_what_does_not_fit_says_so_and_what_to_do(cli):
    done = cli("estimate", "--recipe", "mamba2-dla-780m", "--device", "a100-40gb")
    assert done.code == 0
    assert "This does not fit into the 40.00 GB of a100-40gb." in done.out
    assert "training.activation_checkpointing=full keeps the inputs of blocks alone" in done.out
    smaller = cli(
        *("estimate", "--recipe", "mamba2-dla-780m", "--device", "a100-40gb", "training.activation_checkpointing=full")
    ).out
    assert "does not fit" not in smaller
    assert "what is computed again: expect a lower share" in smaller
    assert (
        "Lower training.micro_batch (now 8)"
        in cli(*("estimate", "--recipe", "mamba2-dla-780m", "training.micro_batch=8")).out
    )
    assert "does not fit" not in cli("estimate", "--recipe", "mamba2-130m").out
    near = cli("estimate", "--recipe", "mamba2-dla-130m", "--device", "a100-40gb", "data.window=7040").out
    assert "93% of a100-40gb" in near
    assert "This may not fit into the 40.00 GB of a100-40gb: what is left is hardly enough for CUDA itself" in near
    assert "may not fit" not in cli("estimate", "--recipe", "mamba2-130m").out


def test_a_small_model_is_not_promised_the_speed_of_a_large_one(cli):
    out = cli("estimate", "--recipe", "tiny").out
    assert "kFLOPs per token" in out
    assert "kernels to be launched" in out
    assert "The recipe itself trains on the CPU (training.accelerator), not on h100." in out
    for large in ("mamba2-130m", "gdn-1.3b"):
        assert "launched" not in cli("estimate", "--recipe", large).out


def test_it_does_not_wait_for_lightning():
    program = (
        "import sys; from dla_train.cli.main import main; main(sys.argv[1:]); sys.exit('lightning' in sys.modules)"
    )
    command = [sys.executable, "-c", program, "estimate", "--recipe", "tiny"]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0


def test_the_recipes_strategy_says_on_how_many_devices(cli):
    recipe = (
        "estimate",
        "--recipe",
        "mamba2-130m",
        "training.micro_batch=4",
        "strategy={kind: ddp, devices: 4, nodes: 2}",
    )
    assert "on 8 x h100" in cli(*recipe).out
    assert "on 2 x h100" in cli(*recipe, "--devices", "2").out
    assert "on 1 x h100" in cli(*recipe[:3], "strategy=ddp").out


def test_slots_beyond_the_kernels_are_said_to_be_slow(cli):
    out = cli("estimate", "--recipe", "mamba2-dla-130m", "model.mixer.memory.capacity=65").out
    assert "larger than the Triton kernels take" in out


@pytest.mark.parametrize("name", [recipe.name for recipe in shipped() if recipe.name.endswith(("m", "m15", "b"))])
def test_every_recipe_of_the_paper_fits_into_an_h200(cli, name):
    done = cli("estimate", "--recipe", name, "--device", "h200")
    assert done.code == 0
    assert "not fit into" not in done.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "dla-train estimate needs --recipe NAME_OR_PATH"),
        (
            ["--recipe", "tiny", "--device", "h10"],
            "--device is h10, which is not in the table. Did you mean h100? It must",
        ),
        (["--recipe", "tiny", "--devices", "0"], "--devices is 0; it must be at least 1."),
        (["--recipe", "tiny", "--devices", "two"], "argument --devices: invalid int value: 'two'."),
        (["--recipe", "tiny", "--utilization", "30"], "--utilization is 30; it must be above 0 and at most 1"),
        (
            ["--recipe", "gdn-790m", "--devices", "7"],
            "a step is 32 micro-batches, which cannot be shared out evenly among 7 devices. "
            "Use --devices 1, 2, 4, 8, 16 or 32, or change one of the two.",
        ),
        (
            ["--recipe", "gdn-790m", "model.layers=0"],
            "on the command line: model.layers is 0; it must be a whole number",
        ),
    ],
)
def test_wrong_usage_is_refused_in_one_sentence(cli, arguments, expected):
    done = cli("estimate", *arguments)
    assert done.code == 2
    assert done.err.startswith("dla-train: error: ")
    assert expected in done.err
    assert done.err.count("\n") == 1
