"""A `DataError` that a worker meets reaches the user as its own message.

A `DataLoader` puts the worker's traceback into the message of what a worker raises, so errors travel as items.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from dla_data.errors import DataError, raise_or_return


class PlainErrorLoader(DataLoader[Any]):
    """Raises the error that came in place of a batch; its data set is `ErrorsAsItems`, its collation `OrError`."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return map(raise_or_return, super().__iter__())


class ErrorsAsItems(Dataset[Any]):
    """The items of `items`, or the `DataError` that one of them raises, in its place."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.items[index]
        except DataError as error:
            return error


class OrError:
    """Makes a batch of items, or gives the first error among them.

    Args:
        collate: makes the batch; None stacks tensors.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self.collate = collate or default_collate

    def __call__(self, items: list[Any]) -> Any:
        return next((item for item in items if isinstance(item, DataError)), None) or self.collate(items)
