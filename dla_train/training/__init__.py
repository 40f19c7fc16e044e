"""Training of one language model: optimizers, schedules, and the LightningModule that joins them."""
