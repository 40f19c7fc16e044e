"""Liger's kernels, interpreted, against plain torch: losses and every gradient of a model."""

import copy

import pytest
import torch

pytest.importorskip("liger_kernel")
pytestmark = pytest.mark.interpret

from dla_train.models import AttentionConfig, LanguageModel, ModelConfig, initialize  # noqa: E402
from dla_train.models.loss import IGNORED  # noqa: E402
from dla_train.runs.metrics_file import read_rows  # noqa: E402
from dla_train.training.fused import linear_cross_entropy, use_liger  # noqa: E402


@pytest.fixture(autouse=True)
def interpretable(monkeypatch):
    """The interpreter has no libdevice, and hands floats to a kernel as they are: without Triton's `.to`."""
    import triton.language
    from liger_kernel.ops import rms_norm as liger

    class Scalar(float):
        def to(self, dtype):
            return float(self)

    forward, backward = liger.rms_norm_forward, liger.rms_norm_backward
    monkeypatch.setattr(liger, "rsqrt", lambda x: triton.language.rsqrt(x))  # looked up when it is interpreted
    monkeypatch.setattr(
        liger, "rms_norm_forward", lambda x, w, eps, offset, *rest: forward(x, w, Scalar(eps), Scalar(offset), *rest)
    )
    monkeypatch.setattr(
        liger,
        "rms_norm_backward",
        lambda dy, x, w, rstd, offset, *rest, **named: backward(dy, x, w, rstd, Scalar(offset), *rest, **named),
    )


@pytest.fixture
def pair():
    """The same model twice, plain and fused."""
    config = ModelConfig(vocab_size=50, hidden=24, layers=2, mixer=AttentionConfig(heads=2), mlp_ratio=2.0)
    plain = initialize(LanguageModel(config), seed=0)
    fused = copy.deepcopy(plain)
    use_liger(fused)
    return plain, fused


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, 50, (2, 2, 11), generator=generator)
    targets[0, 3], targets[1, -1] = IGNORED, IGNORED
    return tokens, targets


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_losses_and_gradients_are_those_of_torch(pair, batch, z_loss, checkpointed):
    losses = []
    for model in pair:
        if checkpointed:
            model.recompute_blocks(1)
        loss = model.loss(*batch, z_loss=z_loss)
        (3 * loss).backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0])
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in pair]
    for name, expected in gradients[0].items():
        assert expected.norm() > 0
        assert (gradients[1][name] - expected).norm() <= 1e-5 * expected.norm(), name


def test_validation_without_gradient(pair, batch):
    with torch.no_grad():
        plain, fused = (model.loss(*batch) for model in pair)
        torch.testing.assert_close(fused, plain)
        per_token = pair[1].token_losses(*batch)
    torch.testing.assert_close(per_token.sum() / (batch[1] != IGNORED).sum(), plain)


def test_no_target_that_counts_is_nan_as_in_torch():
    hidden, weight = torch.randn(4, 8), torch.randn(10, 8)
    assert linear_cross_entropy(hidden, weight, torch.full((4,), IGNORED)).isnan()


@pytest.mark.parametrize("is_fused", [False, True])
def test_weights_are_read_while_their_module_is_called_and_not_after(pair, batch, is_fused):
    """As under ZeRO-3: the weight of the head is there from the beginning of its forward to the end."""
    model = pair[is_fused]
    expected = torch.autograd.grad(pair[0].loss(*batch), pair[0].head.weight)[0]
    whole = model.head.weight.data.clone()

    def gather(head, inputs):
        head.weight.data = whole.clone()

    def release(head, inputs, loss):
        head.weight.data.fill_(torch.nan)

    model.head.register_forward_pre_hook(gather)
    model.head.register_forward_hook(release)
    release(model.head, (), None)
    loss = model.loss(*batch)
    torch.testing.assert_close(torch.autograd.grad(loss, model.head.weight)[0], expected)


def test_a_run_has_the_losses_of_a_plain_one_and_reports_without_the_kernels(cli, micro_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("dla_train.training.start.require_liger", lambda loaded: None)  # there is no GPU, and no need
    reported = []

    def write_report(loaded, folder, start, model):
        reported.append([module.kernel for module in model.modules() if hasattr(module, "kernel")])
        return ""

    monkeypatch.setattr("dla_train.training.fit.write_report", write_report)
    settings = [
        "training.steps=2", "schedule.warmup=1", "training.global_batch=1", "training.micro_batch=1", "data.window=8",
        "training.validate_every=null", "training.validation_windows=1", "training.z_loss=1e-3",
    ]  # fmt: skip
    for fused in ("none", "liger"):
        done = cli("fit", "--recipe", micro_recipe, "--run-dir", fused, f"training.fused={fused}", *settings)
        assert done.code == 0, done.err
    plain, through_liger = (read_rows(tmp_path / name / "metrics.csv") for name in ("none", "liger"))
    assert [row["split"] for row in plain] == ["train", "train", "validation"]
    for one, other in zip(plain, through_liger, strict=True):
        for name in {"loss", "grad_norm"} & one.keys():
            assert other[name] == pytest.approx(one[name], rel=1e-4)
    assert reported[1] == [None] * (2 * 2 + 1 + 1), "norms of two blocks, the last norm, the head"
