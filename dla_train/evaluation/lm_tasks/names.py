"""Whether a task can exist, checked without importing lm-evaluation-harness: to import it and parse its 14,000 YAML
files takes ten seconds or more, and a misspelled name should be refused before that and before a model is loaded."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dla_train.config.overrides import nearest
from dla_train.errors import UsageError

TASKS = Path(__file__).parent / "tasks"
"""Our own task files: groups of the paper's data sets, and data sets that the harness has only in another form."""

_NO_TASKS = {".py", ".pyc", ".md"}
# The value after such a key outside comments. Only a guess, for messages: lists and mappings are not searched.
_NAMED = re.compile(rb"""^[\s-]*["']?(?:task|group|tag)["']?\s*:\s*["']?([\w.:/-]+)""", re.MULTILINE)


def require_possible(names: Sequence[str], besides: Sequence[str]) -> None:
    """Refuse a task file that does not exist, and a name that occurs in no file of the harness or of ours.

    A name that occurs somewhere may still be no task; `Harness.members` checks that.

    Args:
        names: the requested names. besides: names of other tasks.
    Raises:
        UsageError: there is no such task; names the nearest.
    """
    for name in names:
        if name.endswith(".yaml"):
            require_file(name)
    unseen = {name: name.encode() for name in names if not name.endswith(".yaml")}
    known: set[bytes] = set()
    for content in _files() if unseen else ():
        unseen = {name: written for name, written in unseen.items() if written not in content}
        if not unseen:
            return
        known.update(_NAMED.findall(content))
    if unseen:
        raise no_such_task(
            next(iter(unseen)), [*besides, *(name.decode("utf-8", "replace") for name in known)], besides
        )


def require_file(name: str) -> None:
    """Refuse a task file that does not exist.

    Raises:
        UsageError: says so.
    """
    if not Path(name).is_file():
        raise UsageError(f"there is no task file {name}.")


def no_such_task(name: str, known: Sequence[str], besides: Sequence[str]) -> UsageError:
    """The error about an unknown task.

    Args:
        known: names that may have been meant. besides: see `require_possible`.
    """
    guess = nearest(name, known)
    hint = f" Did you mean {guess}?" if guess else ""
    return UsageError(
        f"there is no task '{name}'.{hint} Allowed are {''.join(f'{one}, ' for one in besides)}"
        "paper-commonsense, paper-retrieval, paper-ruler, paper-longbench, every task of "
        "lm-evaluation-harness (`lm-eval ls tasks`), or a task file (.yaml)."
    )


def _files() -> Iterator[bytes]:
    """The contents of the task files, ours first."""
    harness = importlib.util.find_spec("lm_eval")
    roots = [TASKS] if harness is None else [TASKS, *map(Path, harness.submodule_search_locations or ())]
    for root in roots:
        for path in root.rglob("*"):
            # Not only .yaml: files that others include, which may hold tags, have names such as _gen_yaml_2shot.
            if path.suffix not in _NO_TASKS and path.is_file():
                yield path.read_bytes()
