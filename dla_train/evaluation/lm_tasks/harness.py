"""Tasks of lm-evaluation-harness: found by name, loaded with their data, run on a model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer

from dla_train.errors import UsageError
from dla_train.evaluation.lm_tasks.adapter import HarnessModel
from dla_train.evaluation.lm_tasks.names import TASKS, no_such_task, require_file

_BOOTSTRAP = 1000  # resamples for errors of metrics that are not means, such as a perplexity
_KEYS_OF_A_GROUP = {"group", "group_alias", "task", "tag", "aggregate_metric_list", "metadata"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task.

    Attributes:
        value: in the task's unit, mostly a share from 0 to 1. error: standard error of the value, or None.
        examples: number of examples.
    """

    task: str
    metric: str
    value: float
    error: float | None
    examples: int


class Harness:
    """All tasks that are available.

    Args:
        tokenizer_folder: in the format of transformers, for tasks that make texts of a given number of tokens.
        ships_its_own: whether to include the harness's own tasks; reading all their files takes some seconds.
        besides: further allowed names that are not tasks of the harness, for messages about unknown names.
    """

    def __init__(
        self, tokenizer_folder: Path | None = None, *, ships_its_own: bool = True, besides: Sequence[str] = ()
    ) -> None:
        self._besides = besides
        metadata: dict[str, Any] = {} if tokenizer_folder is None else {"tokenizer": str(tokenizer_folder)}
        self._manager = TaskManager(include_path=str(TASKS), include_defaults=ships_its_own, metadata=metadata)

    def members(self, name: str) -> list[str]:
        """The names of the tasks of a group or tag, in order; a task or a task file (a path that ends in .yaml) is its
        only member.

        A group that changes settings of its tasks, such as the examples in the prompt, is not split: it is one member.

        Raises:
            UsageError: there is nothing of this name; names the nearest.
        """
        if name.endswith(".yaml"):
            require_file(name)
            return [name]
        entry = self._manager.task_index.get(name)
        if entry is None:
            raise no_such_task(name, [*self._besides, *self._manager.all_tasks], self._besides)
        if entry.kind.name == "TAG":
            return sorted(entry.tags)
        if entry.kind.name != "GROUP":
            return [name]
        config = entry.cfg or {}
        if not all(isinstance(part, str) for part in config["task"]) or not config.keys() <= _KEYS_OF_A_GROUP:
            return [name]
        return [member for part in config["task"] for member in self.members(part)]

    def load(self, name: str) -> dict[str, Task]:
        """Load a name that `members` returned, with its data: one task, or the tasks of a group that was not split, by
        name.

        Raises:
            UsageError: a data set or a package is missing, or a file is wrong.
        """
        try:
            return self._manager.load([name])["tasks"]
        except ImportError as error:
            raise UsageError(f"the task {name} needs a package: {error}. {INSTALL}") from error
        except OSError as error:
            raise UsageError(self._no_data(name, error)) from error
        except Exception as error:  # a task file may hold any code
            if "cache" in str(error) and isinstance(error, ValueError):  # what `datasets` raises without a network
                raise UsageError(self._no_data(name, error)) from error
            said = " ".join(str(error).split()).rstrip(".")  # YAML's errors have several lines
            own = " docs/evaluation.md shows a whole task file." if name.endswith(".yaml") else ""
            raise UsageError(f"the task {name} cannot be loaded: {type(error).__name__}: {said}.{own}") from error

    def _no_data(self, name: str, error: Exception) -> str:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return (
            f"the data set {self._data_set(name)}of task {name} cannot be read: {said}. Where the hub cannot be "
            "reached, fetch it elsewhere and set HF_HOME to that cache, or set HF_ENDPOINT to a mirror; for a file of "
            "your own check its path."
        )

    def _data_set(self, name: str) -> str:
        entry = self._manager.task_index.get(name)
        config = {} if entry is None or entry.cfg is None else entry.cfg
        return "".join(f"{part} " for part in (config.get("dataset_path"), config.get("dataset_name")) if part)

    def run(self, task: Task, model: HarnessModel, *, limit: int | None = None) -> list[Score]:
        """Run a loaded task on a model; only its first `limit` examples if given."""
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        results: dict[str, Any] = dict(
            evaluate(
                model,
                {"tasks": {str(task.task_name): task}, "groups": {}, "group_map": {}},
                limit=limit,
                bootstrap_iters=_BOOTSTRAP,
                log_samples=False,
            )
            or {}
        )
        ((name, found),) = results["results"].items()
        examples = results["n-samples"][name]["effective"]
        return list(_scores(name, found, examples))


INSTALL = "Install what evaluation needs: pip install 'dla-train[eval]'."


def _scores(task: str, found: dict[str, Any], examples: int) -> Iterator[Score]:
    for key, value in found.items():
        metric, comma, rule = key.partition(",")
        # RULER reports -1 for a length without examples.
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float) or value == -1:
            continue
        error = found.get(f"{metric}_stderr,{rule}")
        shown = metric if rule == "none" else f"{metric} ({rule})"
        kept = float(error) if isinstance(error, int | float) else None
        yield Score(task=task, metric=shown, value=float(value), error=kept, examples=examples)


@contextmanager
def transformers_folder(tokenizer: Tokenizer, end: str) -> Iterator[Path]:
    """A temporary folder from which transformers loads the tokenizer."""
    with tempfile.TemporaryDirectory(prefix="dla-train-tokenizer-") as folder:
        path = Path(folder)
        tokenizer.save(str(path / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        yield path
