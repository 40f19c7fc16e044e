"""What a run imports at its start and on its way, and the compiled segmentation: imported once by the fork server."""

import torch

import dla_train.cli.main
import dla_train.report.write
import dla_train.training.fit  # noqa: F401
from dla_kernels import segment

with torch.no_grad():
    segment(torch.ones(1, 8, 2, 8), torch.ones(1, 8, 2, 8), capacity=4, threshold=0.9)
