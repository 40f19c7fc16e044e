"""`--device`: where a command runs its model."""

from dla_train.errors import UsageError


def device_named(name: str) -> str:
    """PyTorch's device for `auto`, `cpu` or `gpu`; auto takes a GPU if there is one.

    Raises:
        UsageError: a GPU was asked for, and there is none.
    """
    import torch

    if name == "gpu" and not torch.cuda.is_available():
        raise UsageError("--device is gpu, and PyTorch finds none. Use --device cpu, or check the driver.")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
