"""PyTorch's DistributedDataParallel, whose sums are the same in a process's first step as in later ones."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


class DataParallelStrategy(DDPStrategy):
    """Every process holds everything, and gradients are averaged in buckets that do not depend on when a process began.

    DDP puts all gradients of a process's first backward pass into one bucket, and for later ones divides them among
    buckets, in the order in which they came. Where in a bucket a gradient lies decides in which order three or more
    processes add it up. So a run that goes on would add up its first step otherwise than one that never stopped. Here,
    the first backward pass is one of zeros, before training, and every step has the later buckets.
    """

    def __init__(self) -> None:
        super().__init__(gradient_as_bucket_view=True)

    def configure_ddp(self) -> None:
        """Wrap the model, and let DDP divide the gradients among buckets in the next forward pass."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        _pass_zeros_back(self.model)


def _pass_zeros_back(model: DistributedDataParallel) -> None:
    """Give every weight a gradient of zeros, the last one first, as a backward pass does; leave none behind."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    model.reducer.prepare_for_backward([])
    for weight in reversed(weights):
        weight.backward(weight.new_zeros(()).expand_as(weight))
    for weight in weights:
        weight.grad = None
