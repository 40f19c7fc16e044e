"""Recipes by name: the YAML files of the `dla_recipes` package, in a checkout or an installed wheel."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from dla_train.config.overrides import nearest
from dla_train.config.yaml_tree import parse_tree
from dla_train.errors import UsageError

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that was found.

    Attributes:
        name: what its runs are called.
        text: its content.
        shown_as: how messages name the file.
    """

    name: str
    text: str
    shown_as: str

    @property
    def description(self) -> str:
        """Its one-line description, or the reason why it cannot be read."""
        try:
            values = parse_tree(self.text, self.shown_as).values
        except UsageError as error:
            return f"(broken: {error})"
        return str(values.get("description", "")) if isinstance(values, dict) else "(broken: not a recipe)"


def shipped() -> list[RecipeFile]:
    """All recipes of the package, by name."""
    root = resources.files("dla_recipes")
    return sorted(
        (RecipeFile(name, file.read_text("utf-8"), _shown(file)) for name, file in _walk(root, "")),
        key=lambda recipe: recipe.name,
    )


def find(name_or_path: str) -> RecipeFile:
    """A shipped recipe by its name, or any YAML file by its path.

    Raises:
        UsageError: there is neither, or the file cannot be read; names the nearest recipe.
    """
    path = Path(name_or_path).expanduser()
    if not name_or_path.endswith(SUFFIXES):
        by_name = {recipe.name: recipe for recipe in shipped()}
        if name_or_path in by_name:
            return by_name[name_or_path]
        if path.is_dir() and os.sep in name_or_path:
            raise UsageError(f"{name_or_path} is a folder; a recipe is a .yaml file. Give the path of one.")
        if not path.is_file():
            guess = nearest(name_or_path, by_name)
            hint = f" Did you mean {guess}?" if guess else ""
            raise UsageError(
                f"there is no recipe '{name_or_path}'.{hint} Shipped recipes: {', '.join(by_name) or '(none)'}; "
                "a recipe of your own is given by the path of its .yaml file."
            )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name_or_path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error
    except OSError as error:
        raise UsageError(f"cannot read the recipe {name_or_path}: {error.strerror}. Check the path.") from error
    return RecipeFile(path.stem, text, name_or_path)


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(SUFFIXES):
            yield prefix + entry.name.rsplit(".", 1)[0], entry


def _shown(file: Traversable) -> str:
    """The path relative to the current folder if the file lies below it, else the full path."""
    path = Path(str(file))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
