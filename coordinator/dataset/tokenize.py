"""One chunk as records of tokens: lines or rows are read, checked and tokenized; bad ones are counted and left out.

What a record comes to is `peer.training.records`' to say, as by rules 2 of `[data]`, and so is where it falls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from coordinator.dataset.chunks import Chunk, owned_lines
from coordinator.dataset.columns import rows
from coordinator.dataset.compressed import DamagedFile
from coordinator.dataset.findings import ChunkFindings
from coordinator.dataset.sources import opened
from peer.training.chat import Chats
from peer.training.data_file import BOM, HEAD_BYTES, MAX_LINE_BYTES, check_head, text_of
from peer.training.notes import CRLF, LIKE_JSONL
from peer.training.records import (
    TEXT_PIECE_BYTES,
    Record,
    Texts,
    blocks,
    chat_record,
    encode_each,
    front_of,
    is_json_object,
    missing,
    value_of,
    value_of_object,
)
from protocol.data_spec import SequenceRules, SourceRules
from protocol.errors import InputError

_BATCH_RECORDS = 256
_BATCH_CHARS = 1 << 19
_LONG_CHARS = 1 << 20  # texts beyond are tokenized in pieces, to line ends if there are: a token takes 170 bytes first
CHAT_CHARS = 1 << 17  # the same of conversations, where a token takes twice as much: its place, too


class Located(NamedTuple):
    """A line, text or conversation, and where it stands."""

    where: str  # file and line, counted in the chunk
    value: Any


def check_tokenizer(source: SourceRules, sequences: SequenceRules, tokenizer: Any) -> None:
    """Raises: InputError: the tokenizer lacks what the source's kind needs."""
    found = ChunkFindings()
    if source.kind == "jsonl":
        Texts(tokenizer, found.notes)
    elif source.kind == "chat":
        Chats(tokenizer, sequences.template_date or "", found.notes)


def records_of(
    chunk: Chunk, source: SourceRules, sequences: SequenceRules, tokenizer: Any, found: ChunkFindings
) -> Iterator[Record]:
    """The chunk's records, in order.

    Args:
        tokenizer: a `PlainTokenizer`.
        found: hears of lines, records, and what is bad.

    Raises:
        InputError: what no other record would mend: the tokenizer lacks something, the file cannot be read.
        NetworkError: it cannot be reached.
    """
    if source.kind == "text":
        records = _of_text(chunk, sequences.sequence_length, tokenizer, found)
    elif source.kind == "jsonl":
        records = _of_texts(_values(chunk, source, found), Texts(tokenizer, found.notes), tokenizer, found)
    else:
        chats = Chats(tokenizer, sequences.template_date or "", found.notes, _chat_pieces)
        records = _of_chats(_values(chunk, source, found), chats, found)
    for record in records:
        found.records += 1
        found.tokens += len(record.tokens)
        yield record


# ---- lines and rows --------------------------------------------------------------------------------------------------


def _lines(chunk: Chunk, found: ChunkFindings) -> Iterator[Located]:
    """The good lines of a chunk, with their ends; of a packed file that is damaged, those before that."""
    try:
        yield from _lines_to_the_end(chunk, found)
    except DamagedFile as error:
        found.problem = error.message, error.hint


def _lines_to_the_end(chunk: Chunk, found: ChunkFindings) -> Iterator[Located]:
    with opened(chunk.file) as file:
        head = file.read(HEAD_BYTES) if chunk.start == 0 else b""
        if head.startswith(BOM):
            found.notes.say("begins with a byte order mark, which is left out")
        try:
            check_head(chunk.file.name, head.removeprefix(BOM))
        except InputError as error:
            found.problem = error.message, error.hint
            return
        for line in owned_lines(file, chunk.start, chunk.end):
            found.lines += 1
            first = chunk.start == 0 and found.lines == 1
            where = f"{chunk.file.name}: line {found.lines}"
            try:
                text = text_of(chunk.file.name, found.lines, line.removeprefix(BOM) if first else line, first=first)
            except InputError as error:
                found.refuse(where, error)
                continue
            yield Located(where, text)


def _values(chunk: Chunk, source: SourceRules, found: ChunkFindings) -> Iterator[Located]:
    """The good records of a chunk as texts or conversations."""
    if chunk.kind != "lines":
        yield from _of_rows(chunk, source, found)
        return
    first = chunk.start == 0
    for where, line in _lines(chunk, found):
        if not line.strip():
            continue
        try:
            value = value_of(line, where, source, found.notes, first=first)
        except InputError as error:
            found.refuse(where, error)
            continue
        finally:
            first = False
        yield Located(where, value)


def _of_rows(chunk: Chunk, source: SourceRules, found: ChunkFindings) -> Iterator[Located]:
    assert chunk.kind != "lines"
    field = source.text_field if source.kind == "jsonl" else None
    read = rows(chunk.file, chunk.kind, chunk.start, chunk.end, field)
    while True:
        try:
            row = next(read, None)
        except InputError as error:
            found.problem = error.message, error.hint
            return
        if row is None:
            return
        found.lines += 1
        where = f"{chunk.file.name}: line {found.lines}"
        try:
            _check_row(row, where)
            value = value_of_object(row, where, source, found.notes)
        except InputError as error:
            found.refuse(where, error)
            continue
        yield Located(where, value)


def _check_row(row: dict[str, Any], where: str) -> None:
    """Raises: InputError: more than a line of a file may hold, or NUL."""
    waiting: list[Any] = [row]
    size = 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            size += len(part)
            if "\0" in part:
                raise InputError(f"{where}: a NUL character", "take it out: no text has one")
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    if size > MAX_LINE_BYTES:
        raise InputError(f"{where}: expected at most {MAX_LINE_BYTES} bytes", "split it into several records")


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _of_chats(values: Iterable[Located], chats: Chats, found: ChunkFindings) -> Iterator[Record]:
    for where, conversation in values:
        try:
            record = chat_record(chats, conversation, where)
        except InputError as error:
            found.refuse(where, error)
            continue
        if record is not None:
            yield record


def _of_texts(values: Iterable[Located], made: Texts, tokenizer: Any, found: ChunkFindings) -> Iterator[Record]:
    for batch in _batches(values, _BATCH_RECORDS, _BATCH_CHARS):
        for (where, text), ids in zip(batch, _encoded(tokenizer, batch), strict=True):
            if isinstance(ids, InputError):
                found.refuse(where, ids)
                continue
            record = made.record(text, ids)
            if record is not None:
                yield record


def _encoded(tokenizer: Any, texts: list[Located]) -> Iterator[list[int] | InputError]:
    if len(texts) > 1 or len(texts[0].value) <= _LONG_CHARS:
        yield from encode_each(tokenizer, texts)
        return
    ids: list[int] = []
    for text in _pieces_of(texts[0].value, _LONG_CHARS):
        piece = next(encode_each(tokenizer, [(texts[0].where, text)]))
        if isinstance(piece, InputError):
            yield piece
            return
        ids += piece
    yield ids


def _chat_pieces(text: str) -> Iterator[str]:
    return _pieces_of(text, CHAT_CHARS)


def _pieces_of(text: str, long: int) -> Iterator[str]:
    """A text that is not long; of a long one pieces, cut at line ends, or as `_pieces` cuts a line."""
    if len(text) <= long:
        yield text
        return
    lines = (Located("", piece) for line in text.splitlines(keepends=True) for piece in _pieces(line, long))
    for some in _batches(lines, 1 << 30, long):
        yield "".join(line.value for line in some)


def _pieces(line: str, long: int | None = None) -> Iterator[str]:
    """A line that is not long; of a long one pieces, cut before a space where there is one in their second half."""
    most = long or _LONG_CHARS
    while len(line) > most:
        space = line.rfind(" ", most // 2, most)
        end = space if space > 0 else most
        yield line[:end]
        line = line[end:]
    yield line


def _of_text(chunk: Chunk, length: int, tokenizer: Any, found: ChunkFindings) -> Iterator[Record]:
    """A text in blocks that fill a sequence; what goes in front of it stands in its first chunk."""
    if chunk.kind != "lines":
        found.problem = f"{chunk.file.name}: a table, which has records", "use kind jsonl or chat"
        return
    parts: list[np.ndarray] = []
    front: list[int] = []
    for lines in _batches(_text_lines(chunk, found), 1 << 30, TEXT_PIECE_BYTES):
        text = "".join(line.value for line in lines)
        ids = next(encode_each(tokenizer, [(lines[0].where, text)]))
        if isinstance(ids, InputError):
            text, ids = _line_by_line(tokenizer, lines, found)
        if not parts and chunk.start == 0:
            front = missing(front_of(tokenizer, text), ids)
        parts.append(np.asarray(ids, dtype=np.int32))
    whole = np.concatenate([np.asarray(front, dtype=np.int32), *parts])
    yield from blocks(Record.of(whole, len(front)), length)


def _text_lines(chunk: Chunk, found: ChunkFindings) -> Iterator[Located]:
    blank, crlf = True, 0
    for where, line in _lines(chunk, found):
        if found.lines == 1 and chunk.start == 0 and is_json_object(line):
            found.notes.say(LIKE_JSONL)
        blank = blank and not line.strip()
        if line.endswith("\r\n"):
            line, crlf = f"{line[:-2]}\n", crlf + 1
        if not blank:
            for piece in _pieces(line):
                yield Located(where, piece)
    found.notes.count(CRLF, crlf)


def _line_by_line(tokenizer: Any, lines: list[Located], found: ChunkFindings) -> tuple[str, list[int]]:
    """(text, tokens) of those lines that have some."""
    good: list[str] = []
    tokens: list[int] = []
    for line, ids in zip(lines, encode_each(tokenizer, lines), strict=True):
        if isinstance(ids, InputError):
            found.refuse(line.where, ids)
        else:
            good.append(line.value)
            tokens += ids
    return "".join(good), tokens


def _batches(items: Iterable[Located], most: int, chars: int) -> Iterator[list[Located]]:
    """So many together, or fewer that have so many characters; a long one is alone."""
    batch: list[Located] = []
    size = 0
    for item in items:
        long = len(item.value) > max(chars, _LONG_CHARS)
        if batch and long:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.value)
        if len(batch) >= most or size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
