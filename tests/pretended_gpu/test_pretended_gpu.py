"""What shipped recipes would do on a GPU: see `tests.pretended_gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.pretended_gpu.pretend import compile_library

pytestmark = pytest.mark.xdist_group("pretended GPU")

RECIPES = {
    "mamba2-dla-130m": (["model.layers=2"], "plain"),
    "mamba2-130m": (["model.layers=2", "training.precision=bf16-true"], "plain"),
    "mamba2-loglinear-780m": (["model.layers=2"], "plain"),
    "mqar-mamba2-fixed": (["model.layers=2"], "plain"),
    "gdn-dla-130m": (["model.layers=2"], "delta"),
    "gdn-130m": (["model.layers=2", "optimizer={kind: muon, lr: 1e-3}"], "delta"),
    "gdn-loglinear-790m": (["model.layers=2"], "delta"),
    "mqar-gdn-fixed": (["model.layers=2"], "delta"),
    "gdn-dla-hybrid-130m": (["model.layers=3", "model.hybrid.every=3"], "delta"),
    "transformer-130m": (["model.layers=2"], None),
}
"""Settings, and the rule by which states are written. Each has two layers with linear attention, or none."""
TRAINED = [
    (what, name, settings, documents)
    for what in ("train", "validate")
    for name, (settings, _) in RECIPES.items()
    for documents in (False, True)
]
GENERATED = [("generate", name, settings) for name, (settings, _) in RECIPES.items()]
BACKWARD = {"segment": "score_gradient"}
RECOMPUTED = [
    ("train", name, ["model.layers=2", "training.activation_checkpointing=selective"], documents)
    for name in ("mamba2-dla-130m", "gdn-dla-130m")
    for documents in (False, True)
]
RENEWED = [("train", name, settings, True, True) for name, (settings, _) in RECIPES.items()]
PEAKS = [
    [
        (
            "peak",
            name,
            [f"model.layers={layers}", f"training.precision={precision}", f"training.activation_checkpointing={how}"],
            16384,
        )
        for layers in (2, 4)
    ]
    for name, precision, how in [
        ("mamba2-dla-780m", "bf16-mixed", "none"),
        ("mamba2-dla-780m", "bf16-mixed", "full"),
        ("mamba2-dla-780m", "bf16-true", "selective"),
        ("mamba2-loglinear-780m", "32-true", "none"),
        ("gdn-dla-790m", "bf16-mixed", "selective"),
        ("gdn-dla-790m", "bf16-true", "none"),
    ]
]
SHARDED = [
    [
        ("sharded_peak", name, [f"model.layers={layers}", f"training.activation_checkpointing={how}"], 16384, ranks)
        for layers in (4, 6)
    ]
    for name, how, ranks in [("gdn-dla-1.3b", "none", 8), ("mamba2-dla-780m", "full", 4)]
]
CALLS = [*TRAINED, *RECOMPUTED, *RENEWED, *GENERATED, *(call for pair in (*PEAKS, *SHARDED) for call in pair)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """What a call of `CALLS` found. All are made in one process, which pretends there is a GPU."""
    library = tmp_path_factory.mktemp("pretended") / "gpu.so"
    compile_library(library)
    command = [sys.executable, "-m", "tests.pretended_gpu", str(library)]
    done = subprocess.run(command, input=json.dumps(CALLS), text=True, check=True, stdout=subprocess.PIPE)
    results = json.loads(done.stdout)

    def of(*call: Any) -> dict[str, Any]:
        result = results[CALLS.index(call)]
        assert "failure" not in result, result["failure"]
        return result

    return of


def name_of(call: tuple[Any, ...]) -> str:
    return " ".join(str(part) for part in call if not isinstance(part, list))


@pytest.mark.parametrize("call", [*TRAINED, *RECOMPUTED, *RENEWED, *GENERATED], ids=name_of)
def test_nothing_makes_the_host_wait_or_goes_step_by_step(found, call):
    assert not found(*call)["slow"]


@pytest.mark.parametrize("call", TRAINED, ids=name_of)
def test_every_layer_takes_the_kernels(found, call):
    what, name, _, _ = call
    rule = RECIPES[name][1]
    expected: dict[str, int] = {}
    if rule is not None:
        expected[f"read_{rule}"] = 2
        if "dla" in name:
            expected["segment"] = 2
    if what == "train":
        expected = {kernel: 2 for one in expected for kernel in (one, BACKWARD.get(one, f"{one}_backward"))}
    kernels = {operator.removeprefix("dla::"): number for operator, number in found(*call)["calls"].items()}
    assert {
        name: number for name, number in kernels.items() if name.startswith(("read", "segment", "score"))
    } == expected
    assert not found(*call).get("without gradient")


@pytest.mark.parametrize("call", TRAINED, ids=name_of)
def test_every_norm_is_a_kernel(found, call):
    """Two in a layer and the last one; torch's would make a copy in float32, or one in 16 bits."""
    calls, layers = found(*call)["calls"], next(int(one[-1]) for one in call[2] if one.startswith("model.layers"))
    assert calls["dla::rms_norm"] == 2 * layers + 1
    assert calls.get("dla::rms_norm_backward", 0) == (2 * layers + 1) * (call[0] == "train")
    assert not [name for name in calls if "rms_norm" in name and name.startswith("aten")]


@pytest.mark.parametrize("call", RECOMPUTED, ids=name_of)
def test_what_is_costly_does_not_run_again(found, call):
    calls, plain = (found(*one)["calls"] for one in (call, ("train", call[1], RECIPES[call[1]][0], call[3])))
    assert calls["dla::short_convolution"] == calls["dla::gated_rms_norm"] == 4, "in the forward and again"
    costly = {"dla::segment", "dla::score_gradient", *(name for name in plain if name.startswith("dla::read"))}
    assert len(costly) == 4
    assert {name: calls[name] for name in costly} == dict.fromkeys(costly, 2)
    assert calls["aten::mm"] == plain["aten::mm"]


@pytest.mark.parametrize("call", GENERATED, ids=name_of)
def test_the_op_of_a_token_is_one_launch(found, call):
    calls, name = found(*call)["calls"], call[1]
    decoding = {operator: number for operator, number in calls.items() if operator.startswith("dla::decode")}
    rule = RECIPES[name][1]
    if rule is None:
        assert not decoding
        return
    assert decoding == {"dla::decode_in_place" if "dla" in name else "dla::decode_planned_in_place": 4}
    assert calls.get("dla::plan_token", 0) == (4 if "loglinear" in name or "fixed" in name else 0)
    assert calls[f"dla::read_{rule}"] == 2, "of the prompt"


@pytest.mark.parametrize("pair", [*PEAKS, *SHARDED], ids=lambda pair: " ".join([pair[0][1], *pair[0][2][1:]]))
def test_the_estimate_is_what_a_step_holds(found, pair):
    """What the head and the op take, and what FSDP gathers and exchanges, comes at different times, and is estimated as
    if it came at once."""
    few, many = (found(*call) for call in pair)
    assert many["found"] - few["found"] == pytest.approx(many["estimated"] - few["estimated"], rel=0.01)
    assert 0.7 < many["found"] / many["estimated"] < 1
