"""Tasks of lm-evaluation-harness: found by name, loaded with their data, asked of a model."""

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

_BOOTSTRAP = 1000  # resamples for errors of metrics that are no mean, such as a perplexity
_KEYS_OF_A_GROUP = {"group", "group_alias", "task", "tag", "aggregate_metric_list", "metadata"}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task.

    Attributes:
        value: as the task counts, mostly a share from 0 to 1. error: standard error of the value, or None.
        examples: that were asked.
    """

    task: str
    metric: str
    value: float
    error: float | None
    examples: int


class Harness:
    """All tasks that can be asked for.

    Args:
        tokenizer_folder: in the format of transformers, for tasks that make texts of a given number of tokens.
        ships_its_own: whether the harness's own tasks are among them; to read all their files takes some seconds.
        besides: names that are no task of the harness, for the message about one that there is not.
    """

    def __init__(
        self, tokenizer_folder: Path | None = None, *, ships_its_own: bool = True, besides: Sequence[str] = ()
    ) -> None:
        self._besides = besides
        metadata: dict[str, Any] = {} if tokenizer_folder is None else {"tokenizer": str(tokenizer_folder)}
        self._manager = TaskManager(include_path=str(TASKS), include_defaults=ships_its_own, metadata=metadata)

    def members(self, name: str) -> list[str]:
        """The tasks of a group or tag, of a task itself or of a task file (a path that ends in .yaml), in order.

        A group that sets something for its tasks, such as examples in the prompt, stays whole.

        Raises:
            UsageError: there is none of this name; names the nearest.
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
        """A member as `members` has it, with its data: one task, or those of a group that changes its tasks, by name.

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
            if "cache" in str(error) and isinstance(error, ValueError):  # what `datasets` says without a network
                raise UsageError(self._no_data(name, error)) from error
            raise UsageError(f"the task {name} cannot be loaded: {type(error).__name__}: {error}") from error

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
        """Ask a model; of a task that was loaded, its first `limit` examples."""
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
        # -1 is RULER's sign for a length of which there is no example.
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
