"""Reads the records of a data file: plain text, JSONL with a text field, or chats, and says which line is bad.

    text    UTF-8; tokenized in pieces that end at line ends, so that a large file needs little memory
    jsonl   one JSON object a line: {"text": "..."}; the field's name is the run's choice
    chat    one conversation a line, in any of three shapes:
            {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
            {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}      ShareGPT
            {"instruction": "...", "input": "...", "output": "..."}                                      Alpaca

A jsonl record ends with the end-of-sequence token. A chat goes through the tokenizer's chat template, which sets its own
ends, and only the assistant's answers carry loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from peer.training.chat import encode_chat, messages_of
from protocol.errors import InputError
from protocol.run_spec import DataSource, PinnedData

MAX_LINE_BYTES = 8 << 20
TEXT_PIECE_BYTES = 1 << 16  # part of what makes tokens the same everywhere: do not change

_BATCH_PIECES = 8
_BATCH_RECORDS = 256


@dataclass(frozen=True, eq=False)
class Record:
    """One record's tokens.

    Args:
        tokens: int32.
        loss_mask: bool, True where the token is to be predicted.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray) -> Record:
        """A record in which every token is to be predicted."""
        return cls(tokens, np.ones(len(tokens), dtype=bool))


def read_text_tokens(path: Path, tokenizer: Any) -> np.ndarray:
    """All tokens of a text file, int32. Raises: InputError: unreadable, or not UTF-8 (the line is named)."""
    parts = [
        np.asarray(ids, dtype=np.int32)
        for pieces in _batches(_text_pieces(path), _BATCH_PIECES)
        for ids in _encode_all(tokenizer, pieces)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)


def _text_pieces(path: Path) -> Iterator[str]:
    """Pieces of at least 64 KiB that end at a line end (the last is what is left)."""
    waiting: list[str] = []
    size = 0
    for _, line in _lines(path):
        waiting.append(line)
        size += len(line.encode())
        if size >= TEXT_PIECE_BYTES:
            yield "".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield "".join(waiting)


def read_records(data: PinnedData | DataSource, tokenizer: Any, path: Path) -> Iterable[Record]:
    """The records of a jsonl or chat file, in order.

    Raises:
        InputError: unreadable, a bad record (its line is named), or a tokenizer that lacks what the kind needs.
    """
    eos = tokenizer.eos_token_id
    if data.kind == "jsonl" and eos is None:
        raise InputError(
            "the model's tokenizer has no end-of-sequence token, which jsonl records need", "use kind text"
        )
    values = ((f"{path}: line {number}", line) for number, line in _lines(path) if line.strip())
    objects = ((where, _json_object(line, where)) for where, line in values)
    if data.kind == "chat":
        for where, value in objects:
            yield Record(*encode_chat(tokenizer, messages_of(value, where), where))
        return
    for texts in _batches((_text_field(value, data.text_field, where) for where, value in objects), _BATCH_RECORDS):
        for ids in _encode_all(tokenizer, texts):
            if ids:
                yield Record.of(np.asarray([*ids, eos], dtype=np.int32))


def _text_field(value: dict[str, Any], field_name: str, where: str) -> str:
    text = value.get(field_name)
    if not isinstance(text, str):
        raise InputError(f"{where}: expected a string in {field_name!r}, got {type(text).__name__}")
    return text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end), bounded and decoded strictly."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{path}: line {number}: expected at most {MAX_LINE_BYTES} bytes")
                yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: line {number}: not UTF-8: {error.reason}", "save the file as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give the path of the run's data file") from error


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}", "a JSONL file has one JSON object on each line") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _encode_all(tokenizer: Any, texts: list[str]) -> Iterator[list[int]]:
    # the backend, and not the tokenizer's own call: no warning about long texts, no truncation, no special tokens;
    # "fast" leaves out offsets, which take twice the time of the tokens
    for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        yield encoding.ids


def _batches(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
