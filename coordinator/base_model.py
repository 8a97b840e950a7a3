"""The base model as the run pins it: which files of a folder belong to it, their digest, and a copy to serve.

A hub's cache is made of links, and a user's folder may hold anything. Only plain files at the top of the folder that a
loader reads count, so that the same model has the same digest wherever it lies.

    >>> is_model_file("model-00001-of-00002.safetensors"), is_model_file("pytorch_model.bin"), is_model_file(".git")
    (True, False, False)
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
from pathlib import Path

from coordinator.run_folder import move_into_place, sync_tree
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


def copy_model(source: Path, destination: Path) -> None:
    """Copy the model's files, whole or not at all; links are followed, so that real files are served.

    Raises:
        InputError: the disk is full, or a file cannot be read.
    """
    partial = destination.with_name(destination.name + ".new")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name in model_files(source):
            shutil.copyfile(source / name, partial / name)
        sync_tree(partial)
        if destination.exists():
            shutil.rmtree(destination)
        move_into_place(partial, destination)
    except OSError as error:
        raise InputError(
            f"{destination}: the model cannot be copied here: {os.strerror(error.errno or 0)}", "free some disk space"
        ) from error


def copy_licenses(source: Path, destination: Path) -> None:
    """Copy the LICENSE and NOTICE files of a model, which every checkpoint carries on."""
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.name.startswith(("LICENSE", "NOTICE")) and path.is_file():
            shutil.copyfile(path, destination / path.name)
