"""More than two processes, where the sum of their gradients depends on the order of adding."""

import torch

from tests.distributed.conftest import require_equal


def test_three_processes_go_on_to_the_last_bit(fit_on, at_step_4, tmp_path):
    settings = ("strategy=ddp", "training.global_batch=6", "model.tie_embeddings=true")
    fit_on(3, "three", *settings)
    at_step_4("three", "resumed")
    said = fit_on(3, "resumed", *settings, "--resume", "auto")
    assert "going on from step 4" in said
    require_equal(tmp_path / "resumed", tmp_path / "three", rel=0)
    weights, expected = (
        torch.load(tmp_path / run / "checkpoints/step-00000008/state.ckpt", weights_only=True)["state_dict"]
        for run in ("resumed", "three")
    )
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name
