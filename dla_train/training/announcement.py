"""What is said before the first step: the model, the data, the processes, and where the run begins."""

import logging

from dla_data.counted import counted
from dla_train.checkpoints.resume import listed
from dla_train.config.load import LoadedRecipe
from dla_train.data.recipe_data import RecipeData
from dla_train.distributed.config import FSDPConfig, StrategyConfig
from dla_train.distributed.drawbacks import drawbacks
from dla_train.distributed.placement import Placement
from dla_train.models import AttentionConfig, LanguageModel, MixerConfig, ModelConfig
from dla_train.report.text import parameter_count
from dla_train.runs.folder import RunFolder
from dla_train.training.start import Start

_LOGGER = logging.getLogger(__name__)


def layers_in_words(model: ModelConfig) -> str:
    """`24 layers of mamba2 with dynamic memory`, or `24 layers: 18 of mamba2 with dynamic memory, 6 of attention`."""
    if model.hybrid is None:
        return f"{counted(model.layers, 'layer')} of {_in_words(model.mixer)}"
    others = sum(model.hybrid.has(layer) for layer in range(model.layers))
    mixers = ((model.layers - others, model.mixer), (others, model.hybrid.mixer))
    return f"{model.layers} layers: {', '.join(f'{count} of {_in_words(mixer)}' for count, mixer in mixers)}"


def _in_words(mixer: MixerConfig) -> str:
    if not isinstance(mixer, AttentionConfig):
        return f"{mixer.kind} with {mixer.memory.kind} memory"
    return mixer.kind if mixer.window is None else f"{mixer.kind} with a window of {mixer.window:,}"


def announce(
    loaded: LoadedRecipe, folder: RunFolder, start: Start, model: LanguageModel, placement: Placement | None
) -> None:
    """Tell the user about the run that begins or goes on, and warn of what may not be meant so.

    Args:
        loaded: the recipe. folder: of the run. start: where it begins. model: initialized. placement: of the processes,
            or None for a single one.
    """
    recipe = loaded.recipe
    _LOGGER.info(
        "%s: %s parameters, %s, width %d",
        loaded.name,
        parameter_count(sum(parameter.numel() for parameter in model.parameters())),
        layers_in_words(recipe.model),
        recipe.model.hidden,
    )
    per_step = recipe.training.global_batch * recipe.data.window
    _LOGGER.info(
        "%s; %s of %s%s; %s",
        start.data.extent,
        counted(recipe.training.steps, "step"),
        counted(per_step, "token"),
        _epochs(start.data, start.data.windows_before(recipe.training.steps)),
        f"{counted(len(start.data.validation_windows), 'validation window')} of {recipe.data.window}"
        if recipe.training.validates
        else f"windows of {recipe.data.window}, no validation",
    )
    wanted = recipe.training.validation_windows
    if wanted is not None and wanted > len(start.data.validation_windows):
        _LOGGER.warning("training.validation_windows is %d; the validation text has no more than these.", wanted)
    if wanted and (names := start.data.sources_not_validated):
        _LOGGER.warning(
            "training.validation_windows is %d, of which %s gets none by its weight: the validation loss says nothing "
            "of it. Validate on more windows.",
            wanted,
            " and ".join(f"data.sources.{name}" for name in names),
        )
    for sentence in start.data.validated_and_trained_on:
        _LOGGER.warning("%s", sentence)
    if (last := start.data.window_at(recipe.training.steps - 1)) is not None:
        _LOGGER.warning(
            "data.curriculum takes all of training.steps, %d: no window gets its full length of %s, the last ones have "
            "%s. Only the validation reads whole ones.",
            recipe.training.steps,
            f"{recipe.data.window:,}",
            f"{last:,}",
        )
    if recipe.training.precision == "bf16-true":
        _LOGGER.warning(
            "training.precision is bf16-true: updates below 1/256 of a weight are lost, so norms and other weights "
            "near 1 hardly train. Use bf16-mixed to pre-train."
        )
    if placement:
        _LOGGER.info(
            "%s on %s (%d per node, started by %s)%s",
            recipe.strategy.kind,
            counted(placement.world_size, "process"),
            placement.devices,
            placement.launcher,
            _division(recipe.strategy, placement),
        )
        for drawback in drawbacks(recipe.strategy, recipe.model, placement.nodes, placement.devices):
            _LOGGER.warning("%s", drawback)
    if start.point:
        _LOGGER.info("going on from step %d (%s)", start.step, start.point.checkpoint.folder)
    if start.branch and start.branch.changed:
        _LOGGER.warning("branched off with other settings: %s.", listed(start.branch.changed))
    if start.branch and start.branch.beginning:
        _LOGGER.warning("the data or its order is another one than there: %s.", start.branch.beginning)
    _LOGGER.info("run folder: %s", folder)


def _epochs(data: RecipeData, windows: int) -> str:
    """How often the text is read, in brackets: a small source of a mixture may come many times."""
    if (epochs := data.epochs(windows)) is not None:
        return f" ({epochs:.2f} epochs)"
    by_source = [f"{name} {epochs:.2f}" for name, epochs in data.epochs_by_source(windows).items()]
    return f" (epochs: {', '.join(by_source)})" if by_source else ""


def _division(strategy: StrategyConfig, placement: Placement) -> str:
    """How the processes form groups that share windows, and replicas, if there are several that are sharded."""
    found = ""
    if strategy.context_parallel > 1:
        found = f", each window shared by {strategy.context_parallel}"
    replicas = strategy.replicas_on(placement.nodes) if isinstance(strategy, FSDPConfig) else 1
    if replicas > 1:
        found += f", {replicas} replicas of {counted(placement.world_size // replicas, 'process')} each"
    return found
