"""Which commits of hub data sets a run reads: noted in its checkpoints, and read again when the run continues."""

from collections.abc import Iterator, Mapping
from typing import Any

from dla_data.readers import DataSetVersion, Source
from dla_train.config.recipe import Recipe
from dla_train.data.streaming_config import StreamingData

REVISION_OF = "revision of data.sources."
FILES_OF = "files of data.sources."


def version_fingerprints(name: str, version: DataSetVersion | None) -> Iterator[tuple[str, str]]:
    """The entries of `RecipeData.fingerprints` for the version of source `name`; none if the source is plain files."""
    if version is not None:
        if version.revision is not None:
            yield REVISION_OF + name, version.revision
        yield FILES_OF + name, version.files


def revisions_in(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The commits among the fingerprints, by source."""
    return {
        part.removeprefix(REVISION_OF): commit for part, commit in fingerprints.items() if part.startswith(REVISION_OF)
    }


def held_revisions(recipe: Recipe, before: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The commits that a continued run must keep reading, by source.

    A source whose hub name and revision are unchanged in the recipe keeps the commit that they stood for then. If
    either was changed, the commit is looked up anew.

    Args:
        recipe: of the run that continues. before: the plain recipe of the checkpoint. fingerprints: of the checkpoint's
            data.
    """
    if not isinstance(recipe.data, StreamingData):
        return {}
    written = before["data"].get("sources") or {}
    return {
        name: commit
        for name, commit in revisions_in(fingerprints).items()
        if name in recipe.data.sources
        and name in written
        and Source(path=written[name]["path"]).hub == Source(path=recipe.data.sources[name].path).hub
    }
