"""Opens what `prepare_shards` made, and makes sure that it is that."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dla_data.errors import DataError
from dla_data.manifest import WAY_OUT
from dla_data.prepared_folders import SHARDS_NAME
from dla_data.progress import Progress
from dla_data.shards.folder import TOKENIZER_NAME
from dla_data.shards.prepared_manifest import PreparedManifest, ShardEntry
from dla_data.shards.shard import PARTS, part_manifests, verify_shard
from dla_data.shards.sharded_tokens import ShardedTokens
from dla_data.token_file import check_sizes
from dla_data.tokenizer import load_tokenizer, tokenizer_fingerprint

_LOGGER = logging.getLogger("dla_data")


@dataclass(frozen=True)
class PreparedTokens:
    """A finished prepared folder.

    train, validation: its tokens, shard after shard. tokenizer_path: the tokenizer that made them.
    """

    path: Path
    manifest: PreparedManifest
    tokenizer_path: Path
    train: ShardedTokens
    validation: ShardedTokens

    @classmethod
    def open(cls, path: Path, verify: bool = False) -> "PreparedTokens":
        """Open the folder at `path`. Sizes are always checked, every byte (`verify`) on request.

        Raises:
            DataError: nothing there, not finished, or damaged; names the file and both values.
        """
        manifest = PreparedManifest.read(path)
        tokenizer_path = path / TOKENIZER_NAME
        found = tokenizer_fingerprint(load_tokenizer(tokenizer_path))
        if found != manifest.tokenizer:
            raise DataError(
                f"{tokenizer_path} is not the tokenizer that made the shards: its SHA-256 is {found[:16]}, but the "
                f"manifest says {manifest.tokenizer[:16]}. {WAY_OUT}"
            )
        for entry in manifest.shards:
            shard = path / SHARDS_NAME / entry.name
            manifests = part_manifests(shard)
            if ShardEntry.of(entry.name, manifests) != entry:
                raise DataError(f"the shard {shard} is missing, or not the one that the manifest lists. {WAY_OUT}")
            for part, token_manifest in manifests.items():
                check_sizes(shard / part, token_manifest)
        opened = cls(
            path, manifest, tokenizer_path, _part(path, manifest, "train"), _part(path, manifest, "validation")
        )
        if verify:
            opened.verify(PARTS)
        return opened

    def verify(self, parts: Sequence[str]) -> None:
        """Compare every byte of these parts with the manifests.

        Raises:
            DataError: one is damaged; names the file and both values.
        """
        shards = [self.path / SHARDS_NAME / entry.name for entry in self.manifest.shards]
        sizes = [
            sum(file.stat().st_size for part in parts for file in (shard / part).glob("*.bin")) for shard in shards
        ]
        with Progress("comparing checksums", sum(sizes)) as progress:
            for shard, size in zip(shards, sizes, strict=True):
                verify_shard(shard, parts)
                progress.advance(size)

    def require_tokenizer(self, path: Path) -> None:
        """Raise DataError unless the tokenizer at `path` is the one that made the tokens."""
        found = tokenizer_fingerprint(load_tokenizer(path))
        if found != self.manifest.tokenizer:
            raise DataError(
                f"the tokens in {self.path} were made by tokenizer {self.manifest.tokenizer[:16]}, but {path} is "
                f"{found[:16]}. Use {self.tokenizer_path}, or prepare the text with the other one."
            )

    def fingerprint(self, part: str) -> str:
        """A SHA-256 over the checksums of a part's tokens."""
        total = hashlib.sha256()
        for entry in self.manifest.shards:
            if part in entry.parts:
                total.update(entry.parts[part]["sha256"]["tokens.bin"].encode())
        return total.hexdigest()


def _part(path: Path, manifest: PreparedManifest, part: str) -> ShardedTokens:
    entries = [entry for entry in manifest.shards if part in entry.parts]
    return ShardedTokens(
        [path / SHARDS_NAME / entry.name / part for entry in entries],
        [entry.parts[part]["tokens"] for entry in entries],
        f"the {part} part of {path}",
    )
