"""Folders from outside: nothing is followed, everything is bounded, one digest names them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol import files
from protocol.errors import InputError, VerificationError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/b").write_bytes(b"bb")
    (tmp_path / "model/.hidden").write_bytes(b"")
    (tmp_path / "model/sub/a").write_bytes(b"a")
    return tmp_path / "model"


def test_every_file_is_listed_hidden_ones_too(folder: Path) -> None:
    assert list(files.list_files(folder)) == [".hidden", "b", "sub/a"]


def test_links_pipes_and_empty_folders_are_all_named(folder: Path) -> None:
    (folder / "file-link").symlink_to(folder / "b")
    (folder / "folder-link").symlink_to("/etc")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    found, problems = files.survey(folder)
    assert list(found) == [".hidden", "b", "sub/a"]
    assert sorted(problem.split(":")[0] for problem in problems) == [
        "dangling", "empty/", "file-link", "folder-link", "pipe",
    ]  # fmt: skip
    with pytest.raises(VerificationError):
        files.list_files(folder)


def test_empty_folders_can_be_allowed(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert len(files.list_files(folder, allow_empty_dirs=True)) == 3


def test_too_many_files_bytes_or_levels_are_refused(folder: Path) -> None:
    for limits in ({"max_files": 3}, {"max_bytes": 2}):
        with pytest.raises(VerificationError, match="more than it may hold"):
            files.list_files(folder, **limits)
    deep = folder.joinpath(*["d"] * 20)
    deep.mkdir(parents=True)
    (deep / "x").write_text("")
    with pytest.raises(VerificationError, match="more than it may hold"):
        files.list_files(folder)


def test_a_link_in_place_of_the_folder_is_wrong_input(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    for path in (folder.parent / "link", folder / "absent", folder / "b"):
        with pytest.raises(InputError, match="not a directory"):
            files.list_files(path)


def test_only_regular_files_are_opened_and_a_pipe_never_blocks(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "b")
    os.mkfifo(folder / "pipe")
    for name in ("link", "pipe", "sub", "absent"):
        with pytest.raises(VerificationError):
            files.read_bounded(folder / name, 10)
    assert files.read_bounded(folder / "b", 2) == b"bb"
    with pytest.raises(VerificationError, match="at most 1 bytes"):
        files.read_bounded(folder / "b", 1)


def test_the_tree_digest_depends_on_names_contents_and_nothing_else(folder: Path) -> None:
    first = files.tree_digest(files.hash_folder(folder))
    os.utime(folder / "b", (0, 0))
    (folder / "b").chmod(0o600)
    assert files.tree_digest(files.hash_folder(folder)) == first
    (folder / "b").rename(folder / "c")
    second = files.tree_digest(files.hash_folder(folder))
    (folder / "c").write_bytes(b"cc")
    assert len({first, second, files.tree_digest(files.hash_folder(folder))}) == 3


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a\\b", "a\nb", "a\x00", "x" * 2000]
)
def test_a_path_that_could_lead_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(VerificationError):
        files.check_relative(path)


def test_an_ordinary_path_is_fine() -> None:
    for path in ("a", "a/b.c", ".gitignore", "é/火", "..a", "a..b/c"):
        files.check_relative(path)
