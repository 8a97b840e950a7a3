"""The data of a run as its host has them: one file, or the folder of what was prepared from several sources."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coordinator.dataset.chunk_files import DataFolder
from coordinator.dataset.plain_tokenizer import PlainTokenizer
from coordinator.dataset.prepare import Progress, dated, prepare
from coordinator.dataset.screen import sentences
from coordinator.run_config import DataSource, RunConfig
from coordinator.run_folder import RunFolder
from peer.training.data import Dataset, build_dataset, check_data
from peer.training.data_file import check_file
from peer.training.loading import load_tokenizer
from protocol import disk
from protocol.canonical import sha256_hex
from protocol.data_manifest import MAX_MANIFEST_BYTES
from protocol.errors import InputError
from protocol.files import file_sha256, read_bounded


@dataclass(frozen=True)
class DataPins:
    """What of the data is pinned: `RunConfig.pin` takes it."""

    data_digest: str  # of the file, or of the manifest
    data_size_bytes: int
    template_date: str | None = None

    def as_arguments(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Telling:
    """Who hears of a start: each line for the host's screen, and how far a preparation is."""

    tell: Callable[[str], None]
    show: Callable[[Progress], None] = lambda progress: None


TO_LOG = Telling(logging.getLogger(__name__).info)


class RunData:
    """The data that run.toml names.

    Args:
        base: the folder of run.toml.

    Raises:
        InputError: there is no such data file.
    """

    def __init__(self, config: RunConfig, base: Path, folder: RunFolder) -> None:
        self._config, self._base, self._folder = config, base, folder
        self._is_file = isinstance(config.data, DataSource)
        self.path = folder.data  # of prepared data
        if self._is_file:
            check_file(base / config.data_file.path)
            self.path = (base / config.data_file.path).resolve()

    def check(self) -> None:
        """What can be seen before there is a tokenizer. Raises: InputError: the data cannot be used."""
        if self._is_file:
            check_data(self._config.data_file, self.path)

    def read(self, model: Path, telling: Telling) -> Dataset | None:
        """Read the file as members will; or prepare the sources, where None is returned.

        Args:
            model: a folder with the run's tokenizer.

        Raises:
            InputError: the data cannot be used, the place is named; or the disk is full.
            NetworkError: a source cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix="tokenizer-", dir=self._folder.path) as name:  # as the genesis holds it
            with disk.writing(Path(name)):
                load_tokenizer(model).save_pretrained(name)
            tokenizer = load_tokenizer(Path(name))
            if not self._is_file:
                self._prepare(PlainTokenizer.of(tokenizer), telling)
                return None
            dataset = build_dataset(self._config.data_file, tokenizer, self.path)
        for sentence in dataset.notes():
            telling.tell(f"{self.path}: {sentence}")
        return dataset

    def _prepare(self, tokenizer: PlainTokenizer, telling: Telling) -> None:
        prepared = prepare(
            self._config.data_sources,
            self._config.sequence_rules,
            self._base,
            tokenizer,
            self.path,
            processes=os.cpu_count() or 1,
            tell=telling.tell,
            show=telling.show,
        )
        for line in sentences(prepared, str(self.path)):
            telling.tell(line)

    def pins(self) -> DataPins:
        """Raises: InputError: the file is gone; or the data were not prepared."""
        if self._is_file:
            return DataPins(file_sha256(self.path), self.path.stat().st_size)
        here = DataFolder(self.path)
        if not here.manifest.is_file():
            raise InputError(f"{here.manifest}: no such file", "prepare the data: potluck data prepare")
        manifest = read_bounded(here.manifest, MAX_MANIFEST_BYTES)
        rules = dated(self._config.data_sources, self._config.sequence_rules, here)
        return DataPins(sha256_hex(manifest), len(manifest), rules.template_date)
