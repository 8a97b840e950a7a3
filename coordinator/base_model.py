"""The base model as the run pins it: which files of a folder belong to it, their digest, and a copy to serve.

A hub's cache is made of links, and a user's folder may hold anything. Only plain files at the top of the folder that a
loader reads count, so that the same model has the same digest wherever it lies.

    >>> is_model_file("model-00001-of-00002.safetensors"), is_model_file("pytorch_model.bin"), is_model_file(".git")
    (True, False, False)
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
from pathlib import Path

from coordinator.run_folder import move_into_place, sync_tree
from peer.training import base_files
from protocol.disk import disk_error
from protocol.errors import InputError
from protocol.files import tree_digest

_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*", "NOTICE*")


def is_model_file(name: str) -> bool:
    """Whether a file of this name belongs to a model."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS)


def model_files(folder: Path) -> dict[str, tuple[str, int]]:
    """Name -> (hex SHA-256, size in bytes) of the files that belong to the model.

    Raises:
        InputError: a file cannot be read.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if not is_model_file(path.name) or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                found[path.name] = (hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return found


def model_digest(folder: Path) -> str:
    """What the run spec pins the base model by."""
    return tree_digest(model_files(folder))


def files_to_copy(source: Path) -> list[Path]:
    """The files of a host's folder that are taken: what belongs to a model, of the weights those that a loader takes.

    Raises:
        InputError: the folder cannot be read, or holds no weights.
    """
    weights = set(base_files.weight_files(source))
    return [
        path
        for path in sorted(source.iterdir())
        if is_model_file(path.name) and path.is_file() and (path.suffix != ".safetensors" or path in weights)
    ]


def copy_model(source: Path, destination: Path) -> None:
    """Copy the model's files, whole or not at all; links are followed, so that real files are served.

    Raises:
        InputError: the disk is full, or a file cannot be read.
    """
    partial = destination.with_name(destination.name + ".new")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for path in files_to_copy(source):
            shutil.copyfile(path, partial / path.name)
        sync_tree(partial)
        if destination.exists():
            shutil.rmtree(destination)
        move_into_place(partial, destination)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(Path(error.filename2 or destination), error) from error


def copy_licenses(source: Path, destination: Path) -> None:
    """Copy the LICENSE and NOTICE files of a model, which every checkpoint carries on.

    Raises:
        InputError: the disk is full, or a file cannot be read.
    """
    shutil.rmtree(destination, ignore_errors=True)
    try:
        destination.mkdir(parents=True)
        for path in sorted(source.iterdir()):
            if path.name.startswith(("LICENSE", "NOTICE")) and path.is_file():
                shutil.copyfile(path, destination / path.name)
    except OSError as error:
        raise disk_error(Path(error.filename2 or destination), error) from error
