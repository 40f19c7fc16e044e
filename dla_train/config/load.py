"""Turns a recipe file and `key=value` settings into a `Recipe`; every error says where the value was written."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dla_train.config.catalog import RecipeFile
from dla_train.config.overrides import Overridden, apply_overrides, nearest, parse_override
from dla_train.config.recipe import Recipe
from dla_train.config.references import referred, value_at
from dla_train.config.typed import KeyProblem, build, known_keys, refused
from dla_train.config.yaml_tree import Key, YamlTree, dotted, parse_tree
from dla_train.errors import UsageError


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where its values come from.

    Attributes:
        name: what its runs are called.
        recipe: the recipe itself.
    """

    name: str
    recipe: Recipe
    _tree: YamlTree
    _overridden: frozenset[Key]
    _shown_as: str

    def problem(self, key: str, text: str, others: Sequence[str] = ()) -> UsageError:
        """An error about the value of `key`, such as `data.path`, that is found after the recipe was read; `others` are
        keys without whose values there would be none, if `text` does not name them."""
        known = [tuple(other.split(".")) for other in others]
        return UsageError(_located(KeyProblem(tuple(key.split(".")), f": {text}"), self, known))


def load(file: RecipeFile, settings: Sequence[str] = (), begun: bool = False) -> LoadedRecipe:
    """Read `file`, lay `settings` (`key=value`) over it, and check everything.

    Args:
        file: the recipe. settings: from the command line.
        begun: whether the recipe is that of a run already begun, to which `Recipe.require_new` does not apply.
    Raises:
        UsageError: anything is wrong; the message has the key, the place, the value, what is allowed and the nearest
            key.
    """
    tree = parse_tree(file.text, file.shown_as)
    if not isinstance(tree.values, dict):
        found = "is empty" if tree.values is None else "does not hold keys and values"
        raise UsageError(f"{file.shown_as} {found}: a recipe has the sections {', '.join(_sections())}.")
    overridden = apply_overrides(tree, [parse_override(text) for text in settings])
    # Until the recipe is built, only the places of its values are used.
    loaded = LoadedRecipe(file.name, None, tree, overridden.keys, file.shown_as)  # type: ignore[arg-type]
    try:
        recipe = build(Recipe, _resolved(overridden), written=overridden.written)
        if not begun:
            _require_new(recipe)
    except KeyProblem as problem:
        raise UsageError(_located(problem, loaded)) from problem
    return LoadedRecipe(file.name, recipe, tree, overridden.keys, file.shown_as)


def _require_new(recipe: Recipe) -> None:
    try:
        recipe.require_new()
    except ValueError as error:
        raise refused((), str(error), _sections()) from error


def _resolved(overridden: Overridden) -> Any:
    """Fill in `${data.vocab_size}` and the like."""
    values = overridden.values
    try:
        return OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        key = tuple(str(getattr(error, "full_key", "") or "").split("."))
        nowhere = [name for name in referred(value_at(values, key)) if value_at(values, name.split(".")) is None]
        if nowhere and (section := nowhere[0].split(".")[0],) in overridden.keys:
            raise KeyProblem(
                tuple(nowhere[0].split(".")),
                f" has no value: the command line gives {section} another kind, so {section} begins anew, and "
                f"{dotted(key)} refers to it. Give {nowhere[0]}=VALUE, too.",
            ) from error
        reason = f" refers to {nowhere[0]}, which has no value" if nowhere else f": {str(error).splitlines()[0]}"
        raise KeyProblem(key, f"{reason}. A text that has a plain ${{ in it is written with \\${{.") from error


def _located(problem: KeyProblem, loaded: LoadedRecipe, others: Sequence[Key] = ()) -> str:
    """The message `tiny.yaml:12: KEY TEXT`; the place is that of the key or of the nearest enclosing section, or the
    command line, if that has the key or one of `others`."""
    if not problem.key:
        return f"{loaded._shown_as}: the recipe{problem.text}"
    if any(_parents(key) & loaded._overridden for key in (problem.key, *others, *_named(problem))):
        return f"on the command line: {_with_same_name_elsewhere(problem)}"
    if problem.key not in loaded._tree.lines and (places := _whole_names(problem, loaded)):
        return f"on the command line: {_without_guess(problem)} Did you mean {' or '.join(places)}?"
    written_below = any(key[: len(problem.key)] == problem.key for key in loaded._overridden)
    if problem.key not in loaded._tree.lines and written_below:  # `treining.steps=3`: treining is the problem
        return f"on the command line: {problem}"
    written = _parents(problem.key) & loaded._tree.lines.keys()
    line = loaded._tree.lines[max(written, key=len)] if written else None
    named = [name for name in referred(value_at(loaded._tree.values, problem.key)) if name not in problem.text]
    refers = f" It refers to {named[0]}." if named else ""
    return f"{loaded._shown_as}{f':{line}' if line else ''}: {problem}{refers}"


def _named(problem: KeyProblem) -> Iterator[Key]:
    """What may be keys in the part of the text that says how things are: `mixer.heads` in `hidden is 16 and mixer.heads
    is 3; hidden must be a multiple of the heads`. A check names keys as its section sees them, which is one of those
    around the problem's key."""
    facts = re.split(r"; |\. ", problem.text)[0]
    for word in re.findall(r"[\w.]*\w", facts):
        yield from ((*problem.key[:depth], *word.split(".")) for depth in range(len(problem.key)))


def _parents(key: Key) -> set[Key]:
    """A key and all sections around it."""
    return {key[:depth] for depth in range(1, len(key) + 1)}


def _with_same_name_elsewhere(problem: KeyProblem) -> str:
    """For `steps=5` on the command line: with the keys of other sections that end in `steps`."""
    known = {dotted(key): str(key[-1]) for key in known_keys(Recipe)}
    if " is not a key" not in problem.text or dotted(problem.key) in known:
        return str(problem)
    last = str(problem.key[-1])
    if last in known.values():
        wanted = last  # a better guess than a similar name in the same section
    elif "Did you mean" in problem.text:
        return str(problem)
    else:
        wanted = nearest(last, set(known.values()), cutoff=0.78)
    places = [key for key, name in known.items() if name == wanted]
    return f"{_without_guess(problem)} Did you mean {' or '.join(places)}?" if places else str(problem)


def _without_guess(problem: KeyProblem) -> str:
    return re.sub(r" Did you mean \S+\?", "", str(problem))


def _whole_names(problem: KeyProblem, loaded: LoadedRecipe) -> list[str]:
    """For `memory.steer=0.1` on the command line: the keys that end like this."""
    given = [dotted(key) for key in loaded._overridden if len(key) > 1 and key[: len(problem.key)] == problem.key]
    known = [] if " is not a key" not in problem.text else recipe_keys()
    return [key for key in known if any(key.endswith(f".{end}") for end in given)]


def recipe_keys() -> list[str]:
    """All keys that a recipe may have, for any kinds of its sections, such as `optimizer.lr`."""
    return list(dict.fromkeys(dotted(key) for key in known_keys(Recipe)))


def _sections() -> list[str]:
    return list(dict.fromkeys(str(key[0]) for key in known_keys(Recipe)))
