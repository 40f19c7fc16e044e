"""Synthetic tasks as a LightningDataModule; the training order is a function of the step alone."""

from collections.abc import Mapping

from torch.utils.data import DataLoader

from dla_data.counted import counted
from dla_data.order import WindowOrder
from dla_data.synthetic import Examples
from dla_data.synthetic.dataset import SyntheticExamples
from dla_train.data.ordered import ignore_interrupts, step_batches
from dla_train.data.recipe_data import RecipeData, Windows
from dla_train.data.synthetic_config import SyntheticData
from dla_train.training.config import TrainingConfig

VALIDATION_SEED = (1 << 64) - 1
"""A seed that no recipe can have: the validation examples are never trained on, and are the same for every seed."""
VALIDATION_EXAMPLES = 1024
_ENDLESS = 1 << 40  # more examples than any run reads, so that none comes twice


class SyntheticDataModule(RecipeData):
    """Batches of `Examples`, inputs and targets `[micro_batch, window]` int64; targets are -100 where nothing is asked.

    There is no loader state to save: the training loader begins at the trainer's global step, which the checkpoint
    restored.

    Args:
        config: the task and its sizes. training: batch sizes, steps, and how many validation examples.
        seed: of the training examples and of their order.
    """

    def __init__(self, config: SyntheticData, training: TrainingConfig, seed: int) -> None:
        super().__init__()
        self.config = config
        self.training = training
        self.train_examples = self._examples(seed, config.examples or _ENDLESS)
        wanted = training.validation_windows
        chosen = VALIDATION_EXAMPLES if wanted is None else min(wanted, VALIDATION_EXAMPLES)
        self._validation_examples = self._examples(VALIDATION_SEED, chosen)
        self.order = WindowOrder(len(self.train_examples), seed)

    @property
    def tokenizer_path(self) -> None:
        """None: the tokens are not text."""
        return None

    @property
    def fingerprints(self) -> Mapping[str, str]:
        return {"synthetic task": self.train_examples.fingerprint()}

    @property
    def extent(self) -> str:
        examples = counted(self.config.examples, "example") if self.config.examples else "ever new examples"
        return f"{examples} of {self.config.task.kind}"

    @property
    def window(self) -> int:
        return self.config.window

    @property
    def validation_windows(self) -> Windows:
        return self._validation_examples

    @property
    def has_answers(self) -> bool:
        return True

    def answers_of_step(self, step: int) -> int:
        """See `RecipeData`."""
        begin = self.windows_before(step)
        return self.train_examples.answers(self.order.windows(begin, self.training.global_batch))

    def epochs(self, windows: int) -> float | None:
        """One epoch holds every training example once; None if every example is new."""
        return windows / self.config.examples if self.config.examples else None

    def train_dataloader(self) -> DataLoader[Examples]:
        """The micro-batches from the trainer's step to the last one."""
        steps = step_batches(self, self.order)
        return self._loader(self.train_examples, batch_sampler=steps)

    def val_dataloader(self) -> DataLoader[Examples]:
        """This rank's share of the validation examples, always the same ones in the same order."""
        return self._loader(self._validation_examples, batch_sampler=self.validation_share.batches)

    def _examples(self, seed: int, count: int) -> SyntheticExamples:
        return SyntheticExamples(
            self.config.task, vocab_size=self.config.vocab_size, window=self.config.window, seed=seed, count=count
        )

    def _loader(self, examples: SyntheticExamples, **batches: object) -> DataLoader[Examples]:
        return DataLoader(
            examples,
            num_workers=self.config.workers,
            worker_init_fn=ignore_interrupts,
            pin_memory=self.pins_memory,
            **batches,  # type: ignore[arg-type]
        )
