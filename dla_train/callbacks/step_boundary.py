"""Where one optimizer step ends and the next begins, among the micro-batches that Lightning counts."""

import lightning


def begins_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether micro-batch `batch_idx` of this start is the first of its optimizer step."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether micro-batch `batch_idx` of this start is the last of its optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
