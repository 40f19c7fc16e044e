"""Weights & Biases (`logging.wandb`): mirrors the rows of `metrics.csv` to a W&B run, which continues when ours does.

W&B numbers the rows that it has, and `SentRows` tells which these are. So each start sends exactly the later rows of
`metrics.csv`: steps never go back, and what an earlier start could not send is sent later. Where a run that goes back
to an earlier checkpoint validates at other steps than before, W&B keeps the validations that it has of the steps
between. A run that begins in the folder of an attempt that began elsewhere gets a W&B run of its own. Any failure of
W&B is only a warning; training continues.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dla_train import atomic_files
from dla_train.runs.metrics_file import RowKey, key_of, read_rows
from dla_train.runs.wandb_rows import SentRows

if TYPE_CHECKING:
    import wandb

    from dla_train.callbacks.config import WandbConfig
    from dla_train.runs.folder import RunFolder

FINISHED, FAILED, STOPPED = 0, 1, 255
"""How a start ended, in W&B's exit codes: it shows 255 as killed."""

_DEFAULT_PROJECT = "dla-train"
# Used unless the user sets WANDB_CONSOLE and so on. console: logs/run.log has the output already, and W&B would put
# itself between the run and its terminal. The timeouts (seconds) bound the time that a lost network may cost.
_SETTINGS = {"console": "off", "init_timeout": 60.0, "finish_timeout": 20.0, "finish_timeout_raises": True}

_LOGGER = logging.getLogger(__name__)


class WandbMirror:
    """Sends rows; made once per start of a run, after `metrics.csv` was cut back to the step that the run continues
    from.

    Args:
        config: of the recipe. folder: of the run; names the W&B run, and keeps its id and W&B's own files.
        recipe: as plain values, for W&B's config. found: the rows that `metrics.csv` had before it was cut.
        begins: where the run begins, if it does so with this start; None if it goes on.
    """

    def __init__(
        self,
        config: WandbConfig,
        folder: RunFolder,
        recipe: dict[str, Any],
        found: list[RowKey],
        begins: str | None,
    ) -> None:
        self._sent = SentRows()
        self._rows = self._has = 0
        self._run: wandb.Run | None = None
        try:
            before = _read_state(folder)
            state = before or _State(_new_id(), begins=begins)
            if before:
                state.rows = max(state.rows, state.sent.count + len(state.sent.later(found)))
            is_other = before is not None and begins is not None and before.begins not in (None, begins)
            if is_other:
                state = state.of_another_run(_new_id(), begins)
            state.write(folder)
            self._run = _open(config, folder, recipe, state.id)
            if self._run.disabled:
                self._run = None
                return
            # Offline, W&B does not know which rows earlier starts have sent.
            self._has = state.rows if self._run.offline else self._run.starting_step
            self._sent = state.sent = SentRows(self._has) if is_other else state.sent.at(self._has, found)
            self._rows = self._sent.count
            state.write(folder)
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
            place = f"offline, in {self._run.dir.removesuffix('/files')}" if self._run.offline else self._run.url
            _LOGGER.info("W&B: %s", place)
            if is_other:
                _LOGGER.info("W&B has an earlier attempt, which began elsewhere; this one is the W&B run %s.", state.id)
        except Exception as error:
            self._give_up(error)
        for row in read_rows(folder.metrics):
            self.append(row)

    def append(self, row: dict[str, Any]) -> None:
        """Send the next row of `metrics.csv`, unless W&B has it already."""
        if self._run is None or not self._sent.precede(key_of(row)):
            return
        number, self._rows = self._rows, self._rows + 1
        if number < self._has:
            return
        numbers = {f"{row['split']}/{name}": value for name, value in row.items() if name not in ("step", "split")}
        try:
            self._run.log({**numbers, "step": row["step"]})
        except Exception as error:
            self._give_up(error)

    def close(self, exit_code: int) -> None:
        """Finish the W&B run; waits at most 20 s (WANDB_FINISH_TIMEOUT) for rows that are still being sent.

        Args:
            exit_code: `FINISHED`, `FAILED` or `STOPPED`.
        """
        if self._run is None:
            return
        import wandb

        try:
            try:
                self._run.finish(exit_code=exit_code)
            finally:
                wandb.teardown(exit_code=exit_code)
        except Exception as error:
            _LOGGER.warning(
                "W&B may lack the last steps (%s): the next start with --resume auto sends what is missing there, also "
                "where the run is done.",
                _in_short(error),
            )

    def _give_up(self, error: Exception) -> None:
        self._run = None
        _LOGGER.warning(
            "W&B failed (%s): this start of the run goes on without it. metrics.csv has every step, and the next start "
            "that reaches W&B sends what is missing there.",
            _in_short(error),
        )


def _open(config: WandbConfig, folder: RunFolder, recipe: dict[str, Any], run_id: str) -> wandb.Run:
    import wandb

    given = os.environ
    project = config.project or (None if "WANDB_PROJECT" in given else _DEFAULT_PROJECT)
    settings = {name: value for name, value in _SETTINGS.items() if f"WANDB_{name.upper()}" not in given}

    def start(mode: str | None) -> wandb.Run:
        # Silent also keeps W&B from asking for a login, when perhaps nobody is there to answer.
        wandb.setup(settings=wandb.Settings(silent=True))
        return wandb.init(
            project=project,
            entity=config.entity,
            group=config.group,
            tags=config.tags or None,
            name=None if "WANDB_NAME" in given else folder.path.resolve().name,
            dir=None if "WANDB_DIR" in given else folder.path,
            id=run_id,
            resume="allow",
            config=recipe,
            allow_val_change=True,  # a resumed run may change some keys
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(**settings),  # type: ignore[arg-type]
        )

    try:
        return start(None)
    except Exception as error:
        _LOGGER.warning(
            "W&B does not answer (%s): this start of the run is kept offline; the next that reaches W&B sends what is "
            "missing there. Log in with `wandb login` or WANDB_API_KEY; WANDB_MODE=offline does not ask.",
            _in_short(error),
        )
        wandb.teardown(exit_code=FAILED)  # otherwise the id would still be in use
        return start("offline")


@dataclass
class _State:
    """The content of `wandb.json`.

    Attributes:
        id: of the W&B run. rows: how many were logged for it by earlier starts. sent: as the last start found it.
        begins: where the run of these rows began; None if that is not known, as where an earlier version wrote this.
    """

    id: str
    rows: int = 0
    sent: SentRows = field(default_factory=SentRows)
    begins: str | None = None

    def of_another_run(self, run_id: str, begins: str | None) -> _State:
        """The first state of a run that begins at `begins`; behind these rows if WANDB_RUN_ID gives it the same id."""
        return _State(run_id, self.rows if run_id == self.id else 0, begins=begins)

    def write(self, folder: RunFolder) -> None:
        """Write it to the run folder."""
        content = {"id": self.id, "rows": self.rows, "sent": [self.sent.count, self.sent.last], "begins": self.begins}
        atomic_files.write_text(folder.wandb_state, json.dumps(content) + "\n")


def _read_state(folder: RunFolder) -> _State | None:
    try:
        state = json.loads(folder.wandb_state.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    count, last = state.get("sent", (0, None))  # earlier versions took the rows to have fixed numbers
    sent = SentRows(int(count), None if last is None else tuple(last))
    return _State(str(state["id"]), int(state["rows"]), sent, state.get("begins"))


def _new_id() -> str:
    return os.environ.get("WANDB_RUN_ID") or secrets.token_hex(6)


def _in_short(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
