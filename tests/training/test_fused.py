"""`training.fused`: what is refused, and which modules get the kernels."""

import pytest

from dla_train.config import extras
from dla_train.models import AttentionConfig, LanguageModel, ModelConfig, initialize
from dla_train.models.norm import RMSNorm
from dla_train.training import fused


def model():
    config = ModelConfig(vocab_size=31, hidden=16, layers=2, mixer=AttentionConfig(heads=2))
    return initialize(LanguageModel(config), seed=0)


def norms(model):
    return {name for name, module in model.named_modules() if isinstance(module, RMSNorm) and module.kernel is not None}


def test_all_norms_and_the_loss_or_those_outside_of_blocks():
    one = model()
    fused.use_liger(one)
    assert norms(one) == {"norm", *(f"blocks.{i}.{name}" for i in (0, 1) for name in ("mixer_norm", "mlp_norm"))}
    assert one.head.kernel is not None
    fused.use_torch(one)
    assert norms(one) == set()
    assert one.head.kernel is None
    fused.use_liger(one, in_blocks=False)
    assert norms(one) == {"norm"}


def test_without_the_package_it_is_refused_and_says_what_to_install(cli, micro_recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    done = cli("fit", "--recipe", micro_recipe, "training.fused=liger")
    assert done.code == 2
    assert "training.fused: it is liger, but the package liger-kernel is not installed." in done.err
    assert "pip install 'dla-train[fused]', or set training.fused=none" in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("accelerator", "reason"), [("cpu", "training.accelerator is cpu"), ("auto", "PyTorch sees no GPU here")]
)
def test_without_a_gpu_it_is_refused(cli, micro_recipe, monkeypatch, accelerator, reason):
    monkeypatch.setattr(extras, "find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = cli("fit", "--recipe", micro_recipe, "training.fused=liger", f"training.accelerator={accelerator}")
    assert done.code == 2
    assert f"whose kernels need a CUDA GPU, but {reason}. Set training.fused=none." in done.err


def test_another_name_is_refused_with_those_that_are_allowed(cli, micro_recipe):
    done = cli("fit", "--recipe", micro_recipe, "training.fused=apex")
    assert done.code == 2
    assert "training.fused must be one of none, liger, but is 'apex'" in done.err
