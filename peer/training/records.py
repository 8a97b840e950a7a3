"""Reads the records of a data file: plain text, JSONL with a text field, or chats, and says which line is bad.

    text    UTF-8; tokenized in pieces that end at line ends, so that a large file needs little memory
    jsonl   one JSON object a line: {"text": "..."}; the field's name is the run's choice
    chat    one conversation a line, in any of the shapes of `conversation`

A jsonl record ends with the end-of-sequence token. A chat goes through the tokenizer's chat template, which sets its
own ends, and only the assistant's answers carry loss.

What goes in front of a text is the tokenizer's to say (its post-processor: for many models the beginning-of-sequence
token): from rules 2 on (`data.rules`) it stands before a text's first token and before each jsonl record, once, and
carries no loss. A chat template writes its own. By rules 1 nothing goes in front.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from peer.training.chat import Chats, encode_by_transformers, messages_of
from peer.training.chat_template import told
from peer.training.conversation import Conversation, conversation_of, json_type
from peer.training.data_file import numbered_lines
from peer.training.json_line import WHOLE_PAIRS, json_object
from peer.training.notes import EMPTY_TEXTS, LIKE_JSONL, Notes
from peer.training.repeats import normal_form
from protocol.data_spec import DataRules, SourceRules
from protocol.errors import InputError
from protocol.shown import named

TEXT_PIECE_BYTES = 1 << 16  # part of what makes tokens the same everywhere: do not change

_BATCH_PIECES = 8
_BATCH_RECORDS = 256
_HELD_OUT_TOKENS, _HELD_OUT = b"potluck-held-out-v1\n", b"potluck-held-out-v2\n"

Placed = tuple[str, str]  # where it stands (file and line), text


@dataclass(frozen=True, eq=False)
class Record:
    """One record's tokens.

    Args:
        tokens: int32.
        loss_mask: bool, True where the token is to be predicted.
        place: from 0 to 2**64: below the held-out share it is kept out. None: by its tokens.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    place: int | None = None

    @classmethod
    def of(cls, tokens: np.ndarray, front: int = 0, place: int | None = None) -> Record:
        """A record in which every token after the first `front` ones is to be predicted."""
        loss_mask = np.ones(len(tokens), dtype=bool)
        loss_mask[:front] = False
        return cls(tokens, loss_mask, place)


def check_records(data: DataRules, path: Path) -> None:
    """Read all of a file as far as that can be done without a tokenizer.

    Raises:
        InputError: as `read_text` and `read_records`.
    """
    notes = Notes()
    values: Iterable[Any] = _text_lines(path, data, notes) if data.kind == "text" else _values(data, path, notes)
    for _ in values:
        pass


# ---- text ------------------------------------------------------------------------------------------------------------


def read_text(data: DataRules, tokenizer: Any, path: Path, notes: Notes) -> Record:
    """All of a text file as one record. Raises: InputError: unreadable, or not text (the line is named)."""
    parts: list[np.ndarray] = []
    front: list[int] = []
    for pieces in _batches(_text_pieces(_text_lines(path, data, notes), path), _BATCH_PIECES):
        for ids in _encode_all(tokenizer, pieces):
            if not parts and data.rules > 1:
                front = missing(front_of(tokenizer, pieces[0][1]), ids)
            parts.append(np.asarray(ids, dtype=np.int32))
    return Record.of(np.concatenate([np.asarray(front, dtype=np.int32), *parts]), len(front))


def blocks(text: Record, length: int) -> Iterator[Record]:
    """A text as records that fill a sequence each."""
    for start in range(0, len(text.tokens) - 1, length):  # a last block of one token would predict nothing
        yield Record(text.tokens[start : start + length], text.loss_mask[start : start + length])


def _text_lines(path: Path, data: DataRules, notes: Notes) -> Iterator[str]:
    blank = True
    for number, line in numbered_lines(path, data.rules):
        if number == 1 and data.rules > 1 and is_json_object(line):
            notes.say(LIKE_JSONL)
        blank = blank and not line.strip()
        yield line
    if blank and data.rules > 1:
        raise InputError(f"{path}: holds only white space", "give the path of a file with text in it")


def _text_pieces(lines: Iterable[str], path: Path) -> Iterator[Placed]:
    """Pieces of at least 64 KiB that end at a line end (the last is what is left)."""
    waiting: list[str] = []
    size = done = 0
    for number, line in enumerate(lines, 1):
        waiting.append(line)
        size += len(line.encode())
        if size >= TEXT_PIECE_BYTES:
            yield f"{path}: lines {done + 1} to {number}", "".join(waiting)
            waiting, size, done = [], 0, number
    if waiting:
        yield f"{path}: from line {done + 1} on", "".join(waiting)


def is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


# ---- jsonl and chat --------------------------------------------------------------------------------------------------


def read_records(data: DataRules, tokenizer: Any, path: Path, notes: Notes) -> Iterator[Record]:
    """The records of a jsonl or chat file, in order.

    Raises:
        InputError: unreadable, a bad record (its line is named), or a tokenizer that lacks what the kind needs.
    """
    values = _values(data, path, notes)
    if data.kind == "jsonl":
        return _texts(data, tokenizer, values, notes)
    return _chats(data, tokenizer, values, notes)


def _chats(data: DataRules, tokenizer: Any, values: Iterable[tuple[str, Any]], notes: Notes) -> Iterator[Record]:
    if data.rules == 1:
        for where, messages in values:
            yield Record(*encode_by_transformers(tokenizer, messages, where))
        return
    if data.template_date is None:
        raise InputError("chats need data.template_date", "name the day that chat templates are told, as YYYY-MM-DD")
    chats = Chats(tokenizer, data.template_date, notes)
    for where, conversation in values:
        record = chat_record(chats, conversation, where)
        if record is not None:
            yield record


def chat_record(chats: Chats, conversation: Conversation, where: str) -> Record | None:
    """One conversation; None if all of it is marked as not to be learned. Raises: InputError: as `Chats.encode`."""
    encoded, text = chats.encode(conversation, where)
    return None if encoded is None else Record(*encoded, _place(text))


def _texts(data: DataRules, tokenizer: Any, texts: Iterable[Placed], notes: Notes) -> Iterator[Record]:
    made = Texts(tokenizer, notes, data.rules)
    for batch in _batches(texts, _BATCH_RECORDS):
        for (_, text), ids in zip(batch, _encode_all(tokenizer, batch), strict=True):
            record = made.record(text, ids)
            if record is not None:
                yield record


class Texts:
    """Makes records of the texts of one file: what stands before and after their tokens.

    Args:
        tokenizer: a fast transformers tokenizer.

    Raises:
        InputError: it has no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any, notes: Notes, rules: int = 2) -> None:
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the model's tokenizer has no end-of-sequence token, which jsonl records need", "use kind text"
            )
        self._tokenizer, self._notes, self._rules = tokenizer, notes, rules
        self._front: list[int] | None = None
        self._special = set(tokenizer.all_special_ids)

    def record(self, text: str, ids: list[int]) -> Record | None:
        """One text, which has these tokens; None if there is nothing in it."""
        eos = self._tokenizer.eos_token_id
        if not ids or (self._rules > 1 and not text.strip()):
            self._notes.count(EMPTY_TEXTS)
            return None
        if self._rules == 1:
            return Record.of(np.asarray([*ids, eos], dtype=np.int32))
        if self._front is None and not self._special.issuperset(ids):
            self._front = front_of(self._tokenizer, text)
        before = missing(self._front or [], ids)
        tokens = np.asarray([*before, *ids, *([eos] if ids[-1] != eos else [])], dtype=np.int32)
        return Record.of(tokens, len(before), _place(text))


def place_of_tokens(tokens: np.ndarray) -> int:
    """Where a record without a place of its own falls between 0 and 2**64."""
    data = np.ascontiguousarray(tokens, dtype="<i4").tobytes()
    return int.from_bytes(hashlib.sha256(_HELD_OUT_TOKENS + data).digest()[:8], "big")


def _place(text: str) -> int:
    """Where a record falls between 0 and 2**64, wherever its letters are capital and its spaces are."""
    return int.from_bytes(hashlib.sha256(_HELD_OUT + normal_form(text)).digest()[:8], "big")


def front_of(tokenizer: Any, text: str) -> list[int]:
    """The tokens that the tokenizer's post-processor puts in front of a text, seen by one that it has tokens for."""
    backend = tokenizer.backend_tokenizer
    plain, whole = (backend.encode(text, add_special_tokens=special).ids for special in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return list(whole[:start])
    return []


def missing(front: list[int], ids: Any) -> list[int]:
    """What of it does not stand there yet: a text may have been written with it."""
    return front if list(ids[: len(front)]) != front else []


def _values(data: DataRules, path: Path, notes: Notes) -> Iterator[tuple[str, Any]]:
    """(where, text or conversation) of each record, checked as far as that needs no tokenizer."""
    first = True
    for number, line in numbered_lines(path, data.rules):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        if data.rules > 1:
            value: Any = value_of(line, where, data, notes, first=first)
        else:
            found = json_object(line, where, data.rules, first)
            is_text = data.kind == "jsonl"
            value = _text_field(found, data, where, notes) if is_text else messages_of(found, where)
        first = False
        yield where, value
    if first and data.rules > 1:
        raise InputError(f"{path}: holds no records, only white space", "give the path of a file with data in it")


def value_of(line: str, where: str, data: DataRules | SourceRules, notes: Notes, *, first: bool) -> str | Conversation:
    """One line of a jsonl or chat file as its text or conversation, checked as far as that needs no tokenizer.

    Args:
        where: file and line; errors begin with it.
        first: it is the first line of the file with something in it.

    Raises:
        InputError: a bad record.
    """
    return value_of_object(json_object(line, where, 2, first), where, data, notes)


def value_of_object(
    value: dict[str, Any], where: str, data: DataRules | SourceRules, notes: Notes
) -> str | Conversation:
    """The same of what JSON or a table has as one record. Raises: InputError: a bad record."""
    if data.kind == "jsonl":
        return _text_field(value, data, where, notes)
    return conversation_of(value, where, notes)


def _text_field(value: dict[str, Any], data: DataRules | SourceRules, where: str, notes: Notes) -> str:
    text = value.get(data.text_field)
    if not isinstance(text, str):
        found = json_type(text) if data.text_field in value else "no such field"
        raise InputError(
            f"{where}: expected a string in {data.text_field!r}, got {found}",
            f"name the field that holds the text in data.text_field, or use kind chat; here are: {named(value)}",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half of a surrogate pair in {data.text_field!r}", WHOLE_PAIRS) from error
    notes.unused(name for name in value if name != data.text_field and value[name] not in (None, "", [], {}))
    return text


def _encode_all(tokenizer: Any, texts: list[Placed]) -> Iterator[list[int]]:
    for ids in encode_each(tokenizer, texts):
        if isinstance(ids, InputError):
            raise ids
        yield ids


def encode_each(tokenizer: Any, texts: Sequence[Placed]) -> Iterator[list[int] | InputError]:
    """The tokens of each text, or why it has none."""
    try:
        encodings = _encodings(tokenizer, texts)
    except InputError as error:
        if len(texts) == 1:
            yield error
        for one in texts if len(texts) > 1 else []:  # which of them it is
            yield from encode_each(tokenizer, [one])
        return
    for encoding in encodings:
        yield encoding.ids


def _encodings(tokenizer: Any, texts: Sequence[Placed]) -> list[Any]:
    # the backend, and not the tokenizer's own call: no warning about long texts, no truncation, no special tokens;
    # "fast" leaves out offsets, which take twice the time of the tokens
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    try:
        found: list[Any] = encode([text for _, text in texts], add_special_tokens=False)
    except Exception as error:  # what tokenizers raises where a model has no token for a character; nothing narrower
        raise InputError(f"{texts[0][0]}: the model's tokenizer has no tokens for this: {told(error)}") from error
    return found


def _batches(items: Iterable[Placed], size: int) -> Iterator[list[Placed]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
