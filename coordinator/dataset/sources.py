"""The files of a source: a path, a folder, a pattern; a URL that fsspec knows, S3 among them; a repository of a hub.

    files = files_of(source, run_toml.parent, print)
    with opened(files[0]) as file:
        file.seek(1 << 20)

Files come in the order of their names. Those that are not on this machine are read by ranges, as each chunk needs them.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from coordinator.dataset.compressed import ending, is_compressed, unpacked
from coordinator.run_config import SourceConfig
from protocol.errors import InputError, NetworkError, PotluckError
from protocol.installed import this_installation
from protocol.shown import named, shown

TABLES = (".parquet", ".arrow")
ENDINGS = {"text": (".txt",), "jsonl": (".jsonl", ".ndjson", ".json", *TABLES)}
ENDINGS["chat"] = ENDINGS["jsonl"]
EXTRA = "data"  # brings what reads tables, compressed files, and other places
_SAVED = "state.json"  # in a folder that `datasets` has saved
_STAMPS = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "mtime", "version_id")
_REMOTE_BLOCK_BYTES = 4 << 20


class SourceFile(NamedTuple):
    """One file of a source."""

    name: str  # as errors and the report have it
    location: str  # a path, or a URL
    size_bytes: int
    stamp: str  # other than before when the file has changed

    @property
    def is_remote(self) -> bool:
        return "://" in self.location


def files_of(source: SourceConfig, base: Path, tell: Callable[[str], None]) -> list[SourceFile]:
    """The source's files, sorted by name; empty ones too.

    Args:
        base: the folder of run.toml, which its paths start from.
        tell: hears of files in a folder that are not taken.

    Raises:
        InputError: there are none, or what reads them is not installed.
        NetworkError: they cannot be reached.
    """
    if source.path is not None:
        found = _local(source, base, tell)
    else:
        found = _remote(source, tell)
    if not found:
        raise InputError(f"{source.name}: no files of kind {source.kind} there", _hint(source))
    return found


@contextlib.contextmanager
def opened(file: SourceFile) -> Iterator[BinaryIO]:
    """The file, to be read from any place.

    Raises:
        InputError: it cannot be read.
        NetworkError: it cannot be reached.
    """
    if not file.is_remote:
        try:
            with open(file.location, "rb") as handle:
                yield unpacked(handle, file.name) if is_compressed(file.name) else handle
        except OSError as error:
            raise InputError(f"{file.name}: cannot be read: {error.strerror}", "check its owner and path") from error
        return
    with reaching(file.name), contextlib.ExitStack() as stack:
        system, path = _system(file.location)
        size = {"size": file.size_bytes} if file.location.startswith("http") else {}
        handle = stack.enter_context(system.open(path, "rb", block_size=_REMOTE_BLOCK_BYTES, **size))
        if not handle.seekable():
            raise _no_ranges(file.name)
        yield unpacked(handle, file.name) if is_compressed(file.name) else handle


@contextlib.contextmanager
def reaching(name: str) -> Iterator[None]:
    """In the block, what goes wrong on the way to another machine is told as one error."""
    try:
        yield
    except (PotluckError, GeneratorExit):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file", "check the [[data]] entry in run.toml") from error
    except ImportError as error:
        raise InputError(
            f"{name}: cannot be read with what is installed: {shown(error)}", this_installation().add(EXTRA)
        ) from error
    except Exception as error:  # each library has errors of its own
        if "range requests" in str(error):
            raise _no_ranges(name) from error
        reason = shown(error) or type(error).__name__
        raise NetworkError(f"{name}: cannot be fetched: {reason}", "try again; it goes on from here") from error


def _no_ranges(name: str) -> InputError:
    return InputError(f"{name}: its server sends no parts of files", "fetch the file, and give its path")


def check_unchanged(file: SourceFile) -> None:
    """Raises: InputError: a file on this machine is not what it was when it was listed."""
    if not file.is_remote and _of_path(file.location, file.name) != file:
        raise InputError(
            f"{file.name}: has changed since the preparation began",
            "leave it as it is until it is prepared; the same command goes on with all other files",
        )


# ---- on this machine -------------------------------------------------------------------------------------------------


def _local(source: SourceConfig, base: Path, tell: Callable[[str], None]) -> list[SourceFile]:
    path = os.path.join(base, source.path or "")
    try:
        if os.path.isfile(path):
            return [_of_path(path, path)]
        if os.path.isdir(path):
            return [_of_path(item, item) for item in _in_folder(source, path, tell)]
        names = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    except OSError as error:
        raise InputError(f"{source.name}: {path}: cannot be read: {error.strerror}", _hint(source)) from error
    except ValueError as error:
        raise InputError(f"{source.name}: {path!r}: not a path", _hint(source)) from error
    if not names:
        raise InputError(f"{source.name}: {path}: no such file or folder", _hint(source))
    return [_of_path(item, item) for item in names if os.path.isfile(item)]


def _in_folder(source: SourceConfig, folder: str, tell: Callable[[str], None]) -> list[str]:
    if os.path.exists(os.path.join(folder, _SAVED)):
        return _saved_files(source, folder)
    if os.path.exists(os.path.join(folder, "dataset_dict.json")):
        raise InputError(f"{source.name}: {folder}: a dataset with several splits", "give the folder of one of them")
    below = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return _taken(source, sorted(below), tell)


def _saved_files(source: SourceConfig, folder: str) -> list[str]:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote, in its order."""
    try:
        state = json.loads(Path(folder, _SAVED).read_bytes())
        if state.get("_indices_data_files"):
            raise InputError(f"{source.name}: {folder}: a selection of a dataset", "call flatten_indices() and save it")
        return [os.path.join(folder, item["filename"]) for item in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source.name}: {folder}: a damaged {_SAVED}: {shown(error)}", "save it again") from error


def _taken(source: SourceConfig, names: Iterable[str], tell: Callable[[str], None]) -> list[str]:
    """Those of a folder that hold data of the kind, by their endings."""
    taken: list[str] = []
    left: list[str] = []
    for name in names:
        is_data = ending(name) in ENDINGS[source.kind]
        (taken if is_data else left).append(name)
    others = [PurePosixPath(name).name for name in left if not PurePosixPath(name).name.startswith((".", "_"))]
    if others and taken:
        tell(f"{source.name}: {len(others)} files of its folder are not read: {named(others, 5)}")
    return taken


def _of_path(path: str, name: str) -> SourceFile:
    status = os.stat(path)
    return SourceFile(name, path, status.st_size, str(status.st_mtime_ns))


def _hint(source: SourceConfig) -> str:
    endings = " ".join(ENDINGS[source.kind])
    return f"give a file, a folder with files that end with {endings}, or a pattern such as folder/*.dat"


# ---- elsewhere -------------------------------------------------------------------------------------------------------


def _system(url: str) -> tuple[Any, str]:
    import fsspec.core

    system, path = fsspec.core.url_to_fs(url)
    return system, path


def _remote(source: SourceConfig, tell: Callable[[str], None]) -> list[SourceFile]:
    url = source.url or f"hf://datasets/{source.hub}@{source.revision}"
    if source.files is not None:
        url = f"{url.rstrip('/')}/{source.files}"
    with reaching(f"{source.name}: {url}"):
        system, path = _system(url)
        if url.startswith("http"):
            paths = [path]
        elif glob.has_magic(path.rpartition("@")[2]):
            paths = sorted(system.glob(path))
        elif system.isdir(path):
            paths = _taken(source, sorted(system.find(path)), tell)
        else:
            paths = [path]
        return [_of_info(source, system, item, url) for item in paths]


def _of_info(source: SourceConfig, system: Any, path: str, url: str) -> SourceFile:
    location = path if "://" in path else f"{url.partition('://')[0]}://{path}"
    info = system.info(path)
    if info.get("size") is None:
        raise InputError(f"{source.name}: {location}: its server tells no size", "fetch the file, and give its path")
    stamp = next((str(info[name]) for name in _STAMPS if info.get(name)), "")
    return SourceFile(location, location, int(info["size"]), stamp)
