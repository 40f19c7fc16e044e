"""When buckets of the gradients' exchange come on top of gradients: PyTorch's DDP, in one process."""

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from dla_train.config.catalog import find
from dla_train.config.load import load
from dla_train.estimate.activations import Setting
from dla_train.estimate.footprint import footprint
from dla_train.models import LanguageModel


@pytest.fixture
def model(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    model = DistributedDataParallel(torch.nn.Linear(64, 64, bias=False), gradient_as_bucket_view=True)
    model.register_comm_hook(None, exchanged)
    yield model
    distributed.destroy_process_group()


def exchanged(
    _: object,
    bucket: distributed.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
) -> torch.futures.Future[torch.Tensor]:
    """What one process gets from an exchange, without gloo.

    When the model is collected, it holds the interpreter's lock and waits for gloo's threads. One of them may just then
    need that lock, to let go of the Python objects of an exchange, and the tests hang (seen once).
    """
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_gradients_lie_beside_the_buckets_only_while_they_are_gathered(model):
    def place(is_last):
        model.require_backward_grad_sync = is_last  # as DDPStrategy does between the micro-batches of a step
        model(torch.ones(3, 64)).sum().backward()
        return model.module.weight.grad.untyped_storage().data_ptr()

    place(True)
    for weight in model.parameters():
        weight.grad = None
    bucket = place(True)
    model.zero_grad(set_to_none=True)
    assert place(False) != bucket
    assert place(True) == bucket, "it was there all the time"


@pytest.mark.parametrize(
    ("devices", "shared", "global_batch", "copies"),
    [(1, 1, 8, 0), (2, 1, 8, 1), (4, 1, 8, 0), (4, 2, 8, 1), (4, 2, 4, 0)],
)
def test_the_estimate_counts_them_then(micro_recipe, devices, shared, global_batch, copies):
    settings = [f"training.global_batch={global_batch}", "training.micro_batch=2"]
    recipe = load(find(str(micro_recipe)), [*settings, f"strategy={{kind: ddp, context_parallel: {shared}}}"]).recipe
    with torch.device("meta"):
        on_meta = LanguageModel(recipe.model)
    setting = Setting(batch=2, window=24, precision="32-true", path="torch", is_gpu=False)
    stated = footprint(recipe, on_meta, devices, setting)
    assert stated.buckets == copies * stated.gradients
