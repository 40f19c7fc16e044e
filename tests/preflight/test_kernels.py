"""A preflight compares all that a recipe's blocks compute with exact results, and says what is off."""

import pytest
import torch

from dla_kernels.self_check import Finding
from dla_train.config.catalog import find, shipped
from dla_train.config.load import load
from dla_train.preflight import kernels
from dla_train.preflight.kernels import check_kernels, examinations

CPU = torch.device("cpu")
SMALL = ("model.mixer.heads=2", "model.mixer.head_dim=16", "model.mixer.state_dim=16", "model.hidden=64")


def names(recipe, *settings):
    return [one.what for one in examinations(load(find(recipe), settings).recipe)]


@pytest.mark.parametrize("recipe", [file.name for file in shipped()])
def test_every_recipe_has_what_is_to_be_compared(recipe):
    model = load(find(recipe)).recipe.model
    found = names(recipe)
    linear = {mixer for mixer in model.mixers if mixer.kind != "attention"}
    assert len([name for name in found if name.startswith("op of")]) == len(linear)
    assert "RMSNorm" in found[-1]
    assert ("SwiGLU" in found[-1]) == (model.mlp_ratio is not None)
    assert ("L2 norm" in found[-1]) == any(mixer.kind == "gated_deltanet" for mixer in linear)
    assert ("slot weights" in found[-1]) == any(mixer.memory.kind != "single" for mixer in linear)


def test_a_hybrid_of_two_memories_has_both():
    hybrid = "model.hybrid={every: 2, mixer: {kind: mamba2, heads: 4, memory: fenwick}}"
    assert names("tiny", hybrid) == [
        "op of mamba2, dynamic memory",
        "op of mamba2, fenwick memory",
        "convolution, scaled heads, skip, gated norm, slot weights, RMSNorm, SwiGLU",
    ]


def test_softmax_attention_alone_has_its_norms_and_its_mlp():
    assert names("tiny", "model.mixer={kind: attention, heads: 4}", "model.mlp_ratio=null") == ["RMSNorm"]
    assert names("tiny", "model.mixer={kind: attention, heads: 4}") == ["RMSNorm, SwiGLU"]


@pytest.mark.parametrize(("precision", "type_name"), [("32-true", "float32"), ("bf16-mixed", "bfloat16")])
def test_all_is_well_on_the_cpu(precision, type_name):
    recipe = load(find("tiny"), [*SMALL, f"training.precision={precision}"]).recipe
    said = []
    found = check_kernels(recipe, [CPU], said.append)
    assert [check.is_right for check in found] == [True, True]
    assert [check.what.split(": ")[1] for check in found] == [f"torch, {type_name}"] * 2
    assert "27 comparisons; the largest error is" in found[0].found
    assert len(said) == 2


@pytest.mark.parametrize(
    ("precision", "weights"),
    [("32-true", torch.float32), ("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)],
)
@pytest.mark.parametrize("recipe", ["mamba2-dla-130m", "gdn-dla-130m"])
def test_layers_get_weights_of_the_recipe_s_type(monkeypatch, recipe, precision, weights):
    given = []
    for name in ("check_convolution", "check_gated_norm", "check_rms_norm", "check_skip"):
        monkeypatch.setattr(kernels, name, lambda device, dtype, **options: given.append(options["weights"]) or [])
    examinations(load(find(recipe), [f"training.precision={precision}"]).recipe)[-1].how(CPU, torch.float32)
    assert given == [weights] * (4 if "mamba2" in recipe else 3)


@pytest.mark.parametrize(("precision", "stream"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_norms_read_the_stream_in_its_type(monkeypatch, precision, stream):
    given = []
    monkeypatch.setattr(kernels, "check_rms_norm", lambda device, dtype, **sizes: given.append((dtype, sizes)) or [])
    recipe = load(find("tiny"), [*SMALL, f"training.precision={precision}"]).recipe
    examinations(recipe)[-1].how(CPU, torch.bfloat16)
    assert given == [(torch.bfloat16, {"width": 64, "stream": stream, "weights": stream})]


def test_packed_documents_are_given_to_the_op(monkeypatch):
    given = []

    def note(shape, device, dtype, **options):
        given.append(options)
        return [Finding(what="output", error=0, allowed=1)]

    monkeypatch.setattr(kernels, "check_op", note)
    data = "data={kind: prepared, path: x, vocab_size: 2048, window: 256, documents: separate}"
    for settings in ([data], []):
        for one in examinations(load(find("tiny"), settings).recipe)[:1]:
            one.how(CPU, torch.float32)
    assert [options["documents"] for options in given] == [True, False]


def test_what_is_off_is_named_with_its_device(monkeypatch):
    def wrong_on_the_second(shape, device, dtype, **options):
        is_off = device.index == 1
        return [
            Finding(what="output", error=0.001, allowed=0.03),
            Finding(what="d v", error=0.4 if is_off else 0.001, allowed=0.03),
            Finding(what="d q", error=float("nan") if is_off else 0.001, allowed=0.03),
        ]

    monkeypatch.setattr(kernels, "check_op", wrong_on_the_second)
    recipe = load(find("tiny"), [*SMALL, "model.mlp_ratio=null"]).recipe
    devices = [torch.device("meta", index) for index in (0, 1)]
    monkeypatch.setattr(kernels, "_around", lambda mixer, weights: [])
    monkeypatch.setattr(kernels, "check_rms_norm", lambda *given, **sizes: [Finding(what="d x", error=0, allowed=1)])
    monkeypatch.setattr(kernels, "resolve_backend", lambda *arguments: "triton")
    found, layers = check_kernels(recipe, devices, lambda text: None)
    assert layers.is_right is True
    assert found.is_right is False
    assert found.found == "d v on meta:1 off by 4.0e-01, allowed 3.0e-02; d q on meta:1 off by nan, allowed 3.0e-02"


def test_a_kernel_that_fails_is_named_and_the_others_are_compared(monkeypatch, caplog):
    """Such as one that needs more shared memory than the GPU has: what a preflight is there to find."""

    def failing(shape, device, dtype, **options):
        raise RuntimeError("out of resource: shared memory,\n| Required: 300000")

    monkeypatch.setattr(kernels, "check_op", failing)
    recipe = load(find("tiny"), SMALL).recipe
    op, layers = check_kernels(recipe, [CPU], lambda text: None)
    assert op.is_right is False
    assert op.found == "failed on cpu with RuntimeError: out of resource: shared memory, \\| Required: 300000"
    assert layers.is_right is True
    assert "Traceback" in caplog.text
