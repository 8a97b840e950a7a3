"""The model's tokenizer, without the libraries it was loaded by: what a process needs that turns texts into tokens.

transformers and torch take some 300 MB in each process; the tokens come from the small library `tokenizers` alone.

    tokenizer = in_another_process(config.model, run_toml.parent, folder / "hub")
    tokenizer.backend_tokenizer.encode("When everyone brings wood").ids
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from coordinator.run_config import ModelSource
from protocol.canonical import sha256_hex


@dataclass(frozen=True)
class PlainTokenizer:
    """What `peer.training.records` and `chat` ask of a tokenizer."""

    json: str  # its tokenizer.json, as the genesis will hold it
    eos_token_id: int | None
    unk_token_id: int | None
    bos_token_id: int | None
    all_special_ids: tuple[int, ...]
    special_tokens_map: dict[str, str]
    chat_template: str | dict[str, str] | None

    @classmethod
    def of(cls, tokenizer: Any) -> PlainTokenizer:
        """The same as a tokenizer of transformers."""
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as name:
            tokenizer.save_pretrained(name)
            json = Path(name, "tokenizer.json").read_text(encoding="utf-8")
        return cls(
            json,
            tokenizer.eos_token_id,
            tokenizer.unk_token_id,
            tokenizer.bos_token_id,
            tuple(tokenizer.all_special_ids),
            {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
            tokenizer.chat_template,
        )

    @cached_property
    def backend_tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(self.json)
        backend.no_truncation()  # what it may have been saved with
        backend.no_padding()
        return backend

    @cached_property
    def digest(self) -> str:
        """SHA-256 of tokenizer.json."""
        return sha256_hex(self.json.encode())

    @cached_property
    def vocabulary(self) -> int:
        """One more than the highest token."""
        return int(max(self.backend_tokenizer.get_vocab(with_added_tokens=True).values())) + 1

    def get_chat_template(self, tools: Any = None) -> str:
        """As transformers chooses it. Raises: ValueError: there are several, and none is the default."""
        if not isinstance(self.chat_template, dict):
            return self.chat_template or ""
        if tools is not None and "tool_use" in self.chat_template:
            return self.chat_template["tool_use"]
        if "default" not in self.chat_template:
            raise ValueError(f"several templates, none of them default: {sorted(self.chat_template)}")
        return self.chat_template["default"]


def in_another_process(source: ModelSource, base: Path, cache: Path) -> PlainTokenizer:
    """The tokenizer of a run's model, loaded by a process that ends and takes the large libraries with it.

    Args:
        base: the folder of run.toml.
        cache: where what comes of a hub is kept.

    Raises:
        InputError: no such model, or no tokenizer in it.
        NetworkError: its hub cannot be reached.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(tokenizer_of, source, base, cache).result()


def tokenizer_of(source: ModelSource, base: Path, cache: Path) -> PlainTokenizer:
    """The same in this process; of a model from a hub, its weights are not fetched. Raises: as `in_another_process`."""
    from coordinator.model_source import prepare_model
    from peer.training.loading import load_tokenizer
    from peer.training.quiet import no_progress_bars

    found: list[Any] = []

    def look(folder: Path) -> None:
        found.append(load_tokenizer(folder))
        raise _EnoughSeen

    with no_progress_bars():
        with contextlib.suppress(_EnoughSeen):
            look(prepare_model(source, base, cache, before_weights=look))
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as name:  # as the genesis will hold it
            found[0].save_pretrained(name)
            return PlainTokenizer.of(load_tokenizer(Path(name)))


class _EnoughSeen(Exception):
    """The tokenizer is there, and no weights are needed."""
