"""Prepared data as their host has them: all shards of a run, and the manifest, in one folder.

FOLDER/manifest.json    `protocol.data_manifest`
FOLDER/shards/DIGEST.safetensors
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from protocol.data_manifest import MAX_MANIFEST_BYTES, DataManifest, ShardEntry
from protocol.disk import disk_error
from protocol.errors import InputError
from protocol.files import read_bounded


class ShardFolder:
    """Shards that are all here; as `peer.training.dataset.sharded.Shards`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    @cached_property
    def manifest(self) -> DataManifest:
        """Raises: InputError, FormatError: it cannot be read, or is none."""
        return DataManifest.from_bytes(read_bounded(self.manifest_path, MAX_MANIFEST_BYTES))

    def path(self, entry: ShardEntry) -> Path:
        return self.folder / "shards" / f"{entry.digest}.safetensors"

    def read(self, entry: ShardEntry) -> bytes:
        """A shard's bytes. Raises: InputError: it is not there, or was changed."""
        path = self.path(entry)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise disk_error(path, error) from error
        if hashlib.sha256(data).hexdigest() != entry.digest:
            raise InputError(f"{path}: was changed since the data were prepared", "prepare the data again")
        return data

    def has(self, entry: ShardEntry) -> bool:
        return True

    def want(self, entries: Sequence[ShardEntry]) -> None:
        """All are here."""
