"""Parquet files, and the Arrow files that the library `datasets` saves, as rows; pyarrow reads them.

Parquet comes in groups of rows as it was written; of Arrow, whose batches are small, some are taken together.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from coordinator.dataset.compressed import ending, is_compressed
from coordinator.dataset.sources import EXTRA, SourceFile, opened
from protocol.errors import InputError
from protocol.installed import this_installation
from protocol.shown import named, shown

Table = Literal["parquet", "arrow"]
_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20


def kind_of(name: str) -> Literal["lines", "parquet", "arrow"]:
    """By its ending.

    >>> kind_of("data/train-00000.parquet"), kind_of("wiki.jsonl")
    ('parquet', 'lines')
    """
    suffix = ending(name)
    return "parquet" if suffix == ".parquet" else "arrow" if suffix == ".arrow" else "lines"


def _check_plain(file: SourceFile) -> None:
    if is_compressed(file.name):
        raise InputError(f"{file.name}: a table that is packed once more", "unpack it: tables are packed inside")


def groups(file: SourceFile, kind: Table, chunk_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(first, behind the last, bytes) of stretches of about so many bytes.

    Raises:
        InputError: not such a file.
    """
    _check_plain(file)
    if kind == "parquet":
        with opened(file) as handle, _reading(file, "Parquet"):
            metadata = _parquet(handle).metadata
            sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    else:
        with _batches(file) as batches, _reading(file, "Arrow"):
            sizes = [batch.nbytes for batch in batches]
    first = size = 0
    for number, bytes_ in enumerate(sizes, 1):
        size += bytes_
        if size >= chunk_bytes or number == len(sizes):
            yield first, number, size
            first, size = number, 0


def rows(file: SourceFile, kind: Table, first: int, end: int, field: str | None) -> Iterator[dict[str, Any]]:
    """The rows of such a stretch, as JSON would have them.

    Args:
        field: read this one alone, if the file has it.

    Raises:
        InputError: damaged.
    """
    if kind == "arrow":
        with _batches(file) as batches, _reading(file, "Arrow"):
            for number, batch in enumerate(batches):
                if first <= number < end:
                    yield from _objects(_only(file, batch, field))
        return
    with opened(file) as handle, _reading(file, "Parquet"):
        table = _parquet(handle)
        names = table.schema_arrow.names
        if field is not None:
            _check_field(file, names, field)
        read = {"batch_size": _BATCH_ROWS, "use_threads": False, "columns": None if field is None else [field]}
        for batch in table.iter_batches(row_groups=range(first, end), **read):
            yield from _objects(batch)


def _objects(batch: Any) -> Iterator[dict[str, Any]]:
    import pyarrow

    for start in range(0, batch.num_rows, _BATCH_ROWS):
        try:
            some = batch.slice(start, _BATCH_ROWS).to_pylist()
        except UnicodeDecodeError as error:
            raise pyarrow.ArrowInvalid(f"text that is not UTF-8: {error.reason}") from error
        for row in some:
            yield {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    """A struct has all of its fields, null where JSON would leave one out."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _only(file: SourceFile, batch: Any, field: str | None) -> Any:
    if field is None:
        return batch
    _check_field(file, batch.schema.names, field)
    return batch.select([field])


def _check_field(file: SourceFile, names: list[str], field: str) -> None:
    if field not in names:
        raise InputError(f"{file.name}: no column {field!r}", f"name it in text_field; here are: {named(names)}")


def check_installed(file: SourceFile) -> None:
    """Raises: InputError: a table, and pyarrow is not installed."""
    if kind_of(file.name) != "lines" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{file.name}: this needs pyarrow", this_installation().add(EXTRA))


def _parquet(handle: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(handle, buffer_size=_BUFFER_BYTES, pre_buffer=False)


@contextmanager
def _batches(file: SourceFile) -> Iterator[Iterator[Any]]:
    """The batches of an Arrow file, as a stream of them or with a table of where they are."""
    import pyarrow

    if file.is_remote:
        raise InputError(f"{file.name}: Arrow files are read from this machine's disk", "fetch it, and give its path")
    with opened(file), pyarrow.memory_map(file.location) as mapped:
        with _reading(file, "Arrow"):
            try:
                found = iter(pyarrow.ipc.open_stream(mapped))
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(mapped)
                found = (table.get_batch(number) for number in range(table.num_record_batches))
        yield found


@contextmanager
def _reading(file: SourceFile, what: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:
        raise InputError(f"{file.name}: not a whole {what} file: {shown(error)}", "fetch or write it again") from error
