"""The files that members may fetch, by digest and nothing else: genesis, base model, data, checkpoints; for `service`.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp()); _ = (folder / "a.txt").write_bytes(b"hello")
>>> shelf = FileShelf(); files = shelf.add_folder(folder)
>>> files[0].path, b"".join(shelf.read(files[0].sha256, offset=1))
('a.txt', b'ello')
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coordinator.run import Run
from peer.training.dataset.shard_folder import ShardFolder
from protocol import checkpoint
from protocol.data_spec import PinnedDataSet
from protocol.errors import InputError
from protocol.files import file_sha256, hash_folder, list_files, open_regular
from protocol.keys import public_pem
from protocol.model_signature import ModelSignature
from protocol.rpc import MAX_MODEL_CONFIG_BYTES, PART_BYTES
from protocol.run_card import RunCard


@dataclass(frozen=True)
class ShelfFile:
    path: str  # relative, forward slashes
    sha256: str  # hex
    size_bytes: int


class FileShelf:
    """Digest -> file; read by many threads."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[Path, int]] = {}
        self._checkpoints: dict[Path, list[ShelfFile]] = {}

    def add_folder(self, folder: Path) -> list[ShelfFile]:
        """Offer every file of a folder; returns what it holds. Raises: as `files.list_files`."""
        result = []
        for name, (sha256, size_bytes) in hash_folder(folder).items():
            self.add_file(folder / name, sha256, size_bytes)
            result.append(ShelfFile(name, sha256, size_bytes))
        return result

    def add_checkpoint(self, step_dir: Path) -> list[ShelfFile]:
        """Offer a published checkpoint; its weights are not read again, for the signature says their digests.

        Raises: as `files.list_files`; FormatError, VerificationError: the signature cannot be read.
        """
        if step_dir not in self._checkpoints:
            signed = ModelSignature.read(step_dir / checkpoint.SIGNATURE).files
            known = {f"{checkpoint.MODEL}/{name}": digest for name, digest in signed.items()}
            found = [
                ShelfFile(name, known.get(name) or file_sha256(step_dir / name), (step_dir / name).stat().st_size)
                for name in list_files(step_dir)
            ]
            for file in found:
                self.add_file(step_dir / file.path, file.sha256, file.size_bytes)
            self._checkpoints[step_dir] = found
        return self._checkpoints[step_dir]

    def add_file(self, path: Path, sha256: str, size_bytes: int) -> None:
        """Offer one file whose digest is known."""
        self._files[sha256] = (path, size_bytes)

    def remove(self, sha256: str) -> None:
        """Offer a file no more."""
        self._files.pop(sha256, None)

    def add_shards(self, shards: ShardFolder, data: PinnedDataSet) -> None:
        """Offer prepared data; each shard was hashed when it was written, and whoever fetches it does so again."""
        self.add_file(shards.manifest_path, data.digest, data.size_bytes)
        for entry in (*shards.manifest.shards, shards.manifest.held_out):
            self.add_file(shards.path(entry), entry.digest, entry.size_bytes)

    def read(self, sha256: str, offset: int) -> Iterator[bytes]:
        """The bytes from `offset` on, at most 1 MiB at a time.

        Raises:
            InputError: no such file is offered, or the offset lies beyond its end.
        """
        if sha256 not in self._files:
            raise InputError(f"no file with digest {sha256[:64]!r} is offered", "fetch the run description anew")
        path, size_bytes = self._files[sha256]
        if offset > size_bytes:
            raise InputError(f"offset {offset} lies beyond the file's {size_bytes} bytes")
        return self._pieces(path, offset, size_bytes)

    def _pieces(self, path: Path, offset: int, size_bytes: int) -> Iterator[bytes]:
        with open_regular(path) as file:
            file.seek(offset)
            left = size_bytes - offset
            while left and (piece := file.read(min(PART_BYTES, left))):
                left -= len(piece)
                yield piece


@dataclass(frozen=True)
class Offer:
    """What anyone is told of a run, and what its members may fetch."""

    card: RunCard
    card_bytes: bytes  # signed
    root_public_pem: bytes
    genesis_files: list[ShelfFile]
    model_files: list[ShelfFile]  # LoRA: of the base model
    shelf: FileShelf
    model_config: bytes = b""  # config.json of the model, from which its memory is told; empty: it is too long

    @classmethod
    def of(cls, run: Run) -> Offer:
        """Raises: as `FileShelf.add_folder` and `FileShelf.add_checkpoint`; VerificationError: no config.json."""
        shelf, evaluator, data = FileShelf(), run.evaluator, run.card.spec.data
        with open_regular((evaluator.base_model or run.folder.genesis / checkpoint.MODEL) / "config.json") as file:
            config = file.read(MAX_MODEL_CONFIG_BYTES + 1)
        if isinstance(data, PinnedDataSet):
            shelf.add_shards(ShardFolder(evaluator.data), data)
        else:
            shelf.add_file(evaluator.data, data.digest, data.size_bytes)
        return cls(
            card=run.card,
            card_bytes=run.card_bytes,
            root_public_pem=public_pem(run.root.public_key),
            genesis_files=shelf.add_checkpoint(run.folder.genesis),
            model_files=shelf.add_folder(evaluator.base_model) if evaluator.base_model else [],
            shelf=shelf,
            model_config=config if len(config) <= MAX_MODEL_CONFIG_BYTES else b"",
        )
