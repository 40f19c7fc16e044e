"""Passes a `DataError` from a worker to the user with its own message.

If a worker raises, `DataLoader` puts the worker's traceback into the message; so errors are passed as items instead.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from dla_data.errors import DataError, raise_or_return


class PlainErrorLoader(DataLoader[Any]):
    """Raises an error that arrives in place of a batch; to be used with `ErrorsAsItems` and `OrError`."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return map(raise_or_return, super().__iter__())


class ErrorsAsItems(Dataset[Any]):
    """The items of `items`; an item that raises a `DataError` is replaced by that error."""

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
    """Makes a batch of items, or returns the first error among them.

    Args:
        collate: makes the batch; None stacks tensors.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self.collate = collate or default_collate

    def __call__(self, items: list[Any]) -> Any:
        return next((item for item in items if isinstance(item, DataError)), None) or self.collate(items)
