"""How much memory a step takes on a GPU."""

import torch


class DeviceMemory:
    """The memory column of a step's row. There is none on the CPU, where a process shares its memory with others."""

    def __init__(self) -> None:
        self._device: torch.device | None = None

    def start(self, device: torch.device) -> None:
        """Note that training begins on `device`."""
        if device.type == "cuda":
            self._device = device
            torch.cuda.reset_peak_memory_stats(device)

    def of_step(self) -> dict[str, float]:
        """`device_memory_gb`: the most, in 10^9 bytes, that tensors took on this process's GPU since the last call.

        What CUDA itself and the gaps of PyTorch's allocator take comes on top, as with `dla-train estimate`.
        """
        if self._device is None:
            return {}
        most = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return {"device_memory_gb": most / 1e9}
