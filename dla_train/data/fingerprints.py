"""Whether a run's data is still what it was: fingerprints by the name of the part, as `RecipeData.fingerprints`."""

from collections.abc import Mapping

VALIDATION_TEXT = "validation text"
"""How the names of parts begin that are validated only."""


def changed_data(there: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """The parts of a checkpoint's data that differ, with the fingerprints there and here, but for what is only
    validated. A part that the checkpoint does not record, because an older version wrote it, does not count as
    different."""
    return {part: pair for part, pair in _changed(there, here).items() if not part.startswith(VALIDATION_TEXT)}


def changed_validation(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """The validation texts that differ from those of a checkpoint: losses before and after do not compare."""
    return [part for part in _changed(there, here) if part.startswith(VALIDATION_TEXT)]


def _changed(there: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    return {part: (before, here.get(part)) for part, before in there.items() if here.get(part) != before}
