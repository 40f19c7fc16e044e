"""One run from beginning to end: start, train, report."""

import errno
import logging
import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import torch

from dla_data.counted import counted
from dla_data.errors import DataError
from dla_train import atomic_files
from dla_train.callbacks.checkpointing import Checkpointing
from dla_train.callbacks.ending import Ending
from dla_train.callbacks.inspecting import Inspecting
from dla_train.callbacks.memory_log import MemoryLog
from dla_train.callbacks.memory_watch import MemoryWatch
from dla_train.callbacks.profiling import Profiling
from dla_train.callbacks.progress import Progress
from dla_train.callbacks.resume_position import ResumePosition
from dla_train.callbacks.step_metrics import StepMetrics, source_columns
from dla_train.callbacks.stop_signal import Interrupted, StopSignal
from dla_train.callbacks.threshold_calibration import ThresholdCalibration
from dla_train.callbacks.throughput import Throughput
from dla_train.callbacks.watchdog import Watchdog
from dla_train.checkpoints.manifest import RunIdentity
from dla_train.checkpoints.store import CheckpointStore
from dla_train.config.load import LoadedRecipe
from dla_train.config.recipe import Recipe
from dla_train.config.show import differences, to_yaml
from dla_train.config.typed import plain
from dla_train.data.recipe_data import RecipeData
from dla_train.distributed.context_groups import join_context
from dla_train.distributed.placement import Placement, find_placement
from dla_train.distributed.ranks import Ranks, is_lost_peer, joined
from dla_train.errors import RelayedError, RunError
from dla_train.estimate.flops import training_flops
from dla_train.estimate.footprint import checkpoint_bytes
from dla_train.evaluation.trained import read_model
from dla_train.models import LanguageModel, initialize
from dla_train.models.context import ALONE
from dla_train.report.current import has_report_for
from dla_train.report.write import write_report
from dla_train.runs.compilations import told_of_compilations
from dla_train.runs.console import mute_console, quiet_lightning, start_log
from dla_train.runs.environment import computing_packages, record_start
from dla_train.runs.event_files import EventFiles
from dla_train.runs.folder import RunFolder, occupied
from dla_train.runs.memory_file import MemoryFile
from dla_train.runs.metrics_file import ANSWER_ACCURACY, TRAIN, VALIDATION, MetricsFile
from dla_train.runs.saved_recipe import saved_recipe
from dla_train.runs.wandb_mirror import FAILED, FINISHED, STOPPED, WandbMirror
from dla_train.training.announcement import announce
from dla_train.training.fused import use_liger, use_torch
from dla_train.training.host_limits import allow_open_files
from dla_train.training.host_memory import keep_freed_memory, memory_lacked
from dla_train.training.module import Diverged, LanguageModelTraining
from dla_train.training.start import Start, prepare_start
from dla_train.training.trainer import build_trainer

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        signal_number: the signal that stopped it, or None if it ran to its end.
        step: the step that it reached.
        resumable_step: the step of its newest checkpoint, if any.
        report: text for the user; empty for a run that a signal stopped.
        is_told: whether this process tells the user; only rank 0 does.
    """

    signal_number: int | None
    step: int
    resumable_step: int | None
    report: str = ""
    is_told: bool = True


def fit(loaded: LoadedRecipe, folder: RunFolder, resume: str, arguments: Sequence[str] = ()) -> Outcome:
    """Train what `loaded` describes in `folder`.

    Args:
        loaded: the recipe. folder: of the run, made if it is missing. resume: `auto`, `never` or the path of a
            checkpoint. arguments: those of `dla-train`, with which further processes are started if the recipe needs
            several.
    Raises:
        UsageError: recipe, folder, checkpoint and data do not fit together; nothing was written.
        RunError: training failed; the folder holds what was there before and the newest checkpoint.
    """
    quiet_lightning()
    placement = find_placement(loaded)
    if placement.rank:
        mute_console()
    with ExitStack() as stack:
        several = loaded.recipe.strategy.kind != "single"
        ranks = stack.enter_context(joined(placement if several else None, arguments))
        ranks.require_equal(computing_packages(), "the software", "Install the same versions on all nodes.")
        ranks.require_equal(plain(loaded.recipe), "the recipe")
        ranks.first(lambda: stack.enter_context(occupied(folder)))
        ranks.require_shared(folder.path)
        if loaded.recipe.training.threads is not None:
            torch.set_num_threads(loaded.recipe.training.threads)
            if loaded.recipe.training.threads > (cores := os.cpu_count() or 1) and ranks.is_first:
                _LOGGER.warning(
                    "training.threads is %d, and this machine has %s: threads that wait for each other are slow.",
                    loaded.recipe.training.threads,
                    counted(cores, "core"),
                )
        keep_freed_memory()
        allow_open_files()
        store = CheckpointStore(folder.checkpoints, folder.require_held)
        start = prepare_start(loaded, folder, store, resume, ranks)
        _require_validation_that_was(loaded, folder, start)
        ranks.first(folder.require_held)  # to prepare the data may have taken long
        folder.is_started = True
        log = start_log(folder.log if ranks.is_first else folder.log_of(ranks.rank))
        try:
            return _run(loaded, folder, store, start, ranks, placement if several else None)
        except Exception as error:
            _LOGGER.debug("the run failed", exc_info=True)  # for the log; the caller decides what the user sees
            if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise RunError(
                f"{error.filename or f'a file in {folder}'} could not be written: {error.strerror}. "
                f"{store.last_words()} Make room there, then go on with --resume auto."
            ) from error
        finally:
            logging.getLogger().removeHandler(log)
            log.close()


def _run(
    loaded: LoadedRecipe,
    folder: RunFolder,
    store: CheckpointStore,
    start: Start,
    ranks: Ranks,
    placement: Placement | None,
) -> Outcome:
    recipe = loaded.recipe
    model = _initialized(loaded)
    if start.weights is not None:
        start.weights.fill(model)
    if recipe.training.recompute_every is not None:
        model.recompute_blocks(recipe.training.recompute_every, selective=recipe.training.recompute_selectively)
    model.share_windows(join_context(recipe.strategy))
    start.data.context_parallel = recipe.strategy.context_parallel
    if recipe.training.compile:
        model.compile_blocks()
    if recipe.training.fused == "liger":
        use_liger(model, in_blocks=not recipe.training.compile)
    ending = Ending(recipe.training.steps, recipe.training.max_minutes)
    if start.step < recipe.training.steps:
        ranks.first(lambda: store.require_room(checkpoint_bytes(recipe)))
    watch = MemoryWatch(model)
    further = [ANSWER_ACCURACY] if start.data.has_answers else []
    columns = [*further, *source_columns(start.data.consumed(start.step).by_source)]
    own_step = 0 if start.branch else start.step  # rows of an attempt that left no checkpoint are not this run's
    # Cut back before the new recipe is written, beside which older rows would seem to have lost their checkpoints.
    file = MetricsFile(folder.metrics, [*columns, *watch.columns], own_step) if ranks.is_first else None
    ranks.first(lambda: _write_beginning(loaded, folder, store, start))
    announce(loaded, folder, start, model, placement)

    identity = RunIdentity(
        recipe=plain(recipe),
        data=dict(start.data.fingerprints),
        world_size=ranks.world_size,
        strategy=recipe.strategy.kind,
    )
    saved_step = None if start.branch else start.step
    checkpointing = Checkpointing(
        store,
        recipe.checkpoint,
        identity,
        stop := StopSignal(),
        saved_step,
        ranks,
        is_validated=start.is_validated,
    )
    mirror = _wandb(recipe, folder, file, start)
    last_row = own_step, VALIDATION if start.is_validated else TRAIN
    metrics = StepMetrics(
        file,
        mirror,
        watch,
        MemoryLog(MemoryFile(folder.memory, last_row) if ranks.is_first and watch.layers else None),
        recipe.logging,
        _throughput(recipe, start.data),
        checkpointing,
        start.data.consumed,
        further,
    )
    trainer = build_trainer(
        recipe.training,
        strategy=recipe.strategy,
        placement=placement,
        callbacks=[
            Watchdog(recipe.watchdog.minutes, folder.log.parent),
            ResumePosition(),
            stop,
            ending,
            checkpointing,
            ThresholdCalibration(),
            metrics,
            *_inspecting(recipe, folder, ranks.is_first),
            *([Progress(recipe.training.steps, metrics, recipe.logging.console_seconds)] if ranks.is_first else []),
            *([Profiling(recipe.profile, folder.profile)] if recipe.profile is not None else []),
        ],
        logger=EventFiles(folder, start.step) if recipe.logging.tensorboard and ranks.is_first else None,
        folder=folder.path,
    )
    module = LanguageModelTraining(model, recipe.optimizer, recipe.schedule, recipe.training, recipe.seed)
    ended = FAILED
    try:
        with told_of_compilations(trainer.strategy.root_device.type, _LOGGER.info, recipe.logging.console_seconds):
            trainer.fit(
                module,
                datamodule=start.data,
                ckpt_path=start.point.checkpoint.state if start.point else None,
                weights_only=True,
            )
        ended = FINISHED
    except Interrupted as interrupted:
        ended = STOPPED
        if ranks.is_first:  # also for the log, where someone whose terminal is gone will look
            _LOGGER.info("told to stop by %s at step %d", interrupted, trainer.global_step)
        newest = store.all()[:1]
        saved = newest[0].step if newest else None
        return Outcome(interrupted.signal_number, trainer.global_step, saved, is_told=ranks.is_first)
    except SystemExit as exit:
        # How Lightning reacts to a Ctrl-C that comes before `StopSignal` handles signals.
        ended = STOPPED
        raise KeyboardInterrupt from exit
    except Diverged as error:
        if not ranks.is_first:  # it is the same on all
            raise RelayedError(error.exit_code) from error
        raise RunError(f"{error} {_how_to_branch_off(folder, store)}") from error
    except DataError as error:
        raise RunError(f"{error} {store.last_words()}") from error
    except (RuntimeError, MemoryError) as error:
        if kind := memory_lacked(error):
            shared = ", share windows among more GPUs (strategy.context_parallel)" if kind == "GPU" else ""
            raise RunError(
                f"out of {kind} memory {_where(trainer.global_step, checkpointing)}. Lower training.micro_batch (now "
                f"{recipe.training.micro_batch}; the result stays the same) or data.window{shared}, or take a smaller "
                f"model; `dla-train estimate` says what it needs. {store.last_words()}"
            ) from error
        if isinstance(error, MemoryError) or not is_lost_peer(error):
            raise
        raise RunError(
            f"rank {ranks.rank} lost contact with another process {_where(trainer.global_step, checkpointing)}, "
            f"because that one failed or its node did: see its message or its log in {folder.log.parent}. "
            f"{store.last_words()} Go on with --resume auto."
        ) from error
    finally:
        if mirror is not None:
            mirror.close(ended)
    if ending.is_out_of_time:
        _LOGGER.warning(
            "stopped at step %d of %d, because training.max_minutes is %g; --resume auto goes on with it.",
            trainer.global_step,
            recipe.training.steps,
            recipe.training.max_minutes,
        )
    report = ranks.first(lambda: _report(loaded, folder, start, model, store, is_new=start.step != trainer.global_step))
    return Outcome(None, trainer.global_step, trainer.global_step, report, is_told=ranks.is_first)


def _where(step: int, checkpointing: Checkpointing) -> str:
    """What the run was at when it failed; `step` is the newest finished one."""
    if checkpointing.validation_is_due:
        return f"in the validation after step {step}"
    return f"at step {step + 1}"


def _require_validation_that_was(loaded: LoadedRecipe, folder: RunFolder, start: Start) -> None:
    """Refuse other validation windows for a finished run: it does not validate again, and its report compares the model
    with a bigram on the windows it used. If its last validation has failed, it is still to come."""
    if start.point is None or start.step < loaded.recipe.training.steps:
        return
    # Not the checkpoint's recipe: after a validation that failed, the one that succeeded may have had other windows.
    then = plain(saved_recipe(folder).recipe) if folder.is_run() else start.point.manifest.identity.recipe
    changed = differences(then, plain(loaded.recipe))
    if (values := changed.get("training.validation_windows")) is None:
        return
    before, now = ("null" if value is None else value for value in values)
    if before != 0 and not start.is_validated:
        return
    raise loaded.problem(
        "training.validation_windows",
        f"it is {now}, but this run is finished, and was {before} when it was validated last. Leave it at {before}, or "
        "set more training.steps.",
    )


def _initialized(loaded: LoadedRecipe) -> LanguageModel:
    try:
        return initialize(LanguageModel(loaded.recipe.model), loaded.recipe.seed)
    except (RuntimeError, MemoryError) as error:
        if memory_lacked(error) is None:
            raise
        raise RunError(
            "there is too little main memory for the model's weights, which are made there. `dla-train estimate` says "
            f"how large they are: take a smaller model, or a machine with more ({loaded.name})."
        ) from error


def _how_to_branch_off(folder: RunFolder, store: CheckpointStore) -> str:
    newest = store.all()[:1]
    if not newest:
        return "There is no checkpoint yet: start again with such settings in another folder (--run-dir DIR)."
    recipe, checkpoint, new = (
        shlex.quote(str(path)) for path in (folder.recipe, newest[0].folder, f"{folder}-from-{newest[0].step}")
    )
    return (
        f"{store.last_words()} With other settings it goes on in another folder: dla-train fit --recipe {recipe} "
        f"--resume {checkpoint} --run-dir {new} KEY=VALUE; take an earlier one if that has gone astray already."
    )


def _report(
    loaded: LoadedRecipe, folder: RunFolder, start: Start, model: LanguageModel, store: CheckpointStore, is_new: bool
) -> str:
    if not is_new and folder.report_text.is_file():
        return folder.report_text.read_text(encoding="utf-8")
    if loaded.recipe.strategy.kind not in ("single", "ddp"):  # no process has a whole model
        model = read_model(store.all()[0], loaded.recipe.model)
    use_torch(model)  # the report is made on the CPU
    model.share_windows(ALONE)  # and on one rank
    with torch.compiler.set_stance("force_eager"):  # the sample's few tokens are not worth compiling for
        return write_report(loaded, folder, start, model.to("cpu"))


def _inspecting(recipe: Recipe, folder: RunFolder, is_first: bool) -> list[Inspecting]:
    every = recipe.logging.inspect_every
    return [Inspecting(every, folder.inspections, folder.tokenizer)] if every is not None and is_first else []


def _throughput(recipe: Recipe, data: RecipeData) -> Throughput:
    by_window = cache(lambda window: training_flops(recipe.model, window))

    def flops(step: int) -> float:
        return by_window(data.window_at(step) or recipe.data.window)

    return Throughput(recipe.training.global_batch * recipe.data.window, flops, recipe.training.precision)


def _write_beginning(loaded: LoadedRecipe, folder: RunFolder, store: CheckpointStore, start: Start) -> None:
    if start.step < loaded.recipe.training.steps or not has_report_for(loaded.recipe, folder):
        folder.report_text.unlink(missing_ok=True)  # an older report, of fewer steps or other settings
    text = f"# {loaded.name}, every value written out; a recipe itself.\n" + to_yaml(loaded.recipe)
    atomic_files.write_text(folder.recipe, text)
    if start.data.tokenizer_path is not None:
        # It may be that very file, if all others are lost.
        atomic_files.write_text(folder.tokenizer, start.data.tokenizer_path.read_text(encoding="utf-8"))
    device = (
        "cpu"
        if loaded.recipe.training.accelerator == "cpu" or not torch.cuda.is_available()
        else torch.cuda.get_device_name()
    )
    threads = torch.get_num_threads()
    record_start(folder.environment, step=start.step, goes_on=start.goes_on, device=device, threads=threads)
    store.remove_leftovers()
    for checkpoint in start.point.damaged if start.point else ():
        _LOGGER.warning("the damaged checkpoint is kept as %s.", store.set_aside(checkpoint))


def _wandb(recipe: Recipe, folder: RunFolder, file: MetricsFile | None, start: Start) -> WandbMirror | None:
    if recipe.logging.wandb is None or file is None:
        return None
    begins = None
    if not start.goes_on:
        begins = str(start.point.checkpoint.folder.resolve()) if start.point else "step 0"
    return WandbMirror(recipe.logging.wandb, folder, plain(recipe), file.found, begins)
