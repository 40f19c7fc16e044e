"""The norm of the whole gradient, which clipping uses and the metrics show."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients as one vector, a float32 (or wider) scalar; over all ranks where they are sharded.

    `torch.nn.utils.get_total_norm` rounds it to the gradients' own type; in bfloat16 this is an error of up to 0.4 %
    for each tensor and again for the total. And of sharded gradients it asks one by one; here, a GPU has a few kernels
    for all.
    """
    is_narrow = any(gradient.dtype.itemsize < torch.float32.itemsize for gradient in gradients)
    norms = torch._foreach_norm(  # pyright: ignore[reportPrivateImportUsage]
        list(gradients), 2, dtype=torch.float32 if is_narrow else None
    )
    total = torch.linalg.vector_norm(torch.stack(norms))
    return total.full_tensor() if isinstance(total, DTensor) else total
