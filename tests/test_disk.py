"""What a disk's refusal comes to, in whatever words it reaches us: one error that names the file and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError
from sqlalchemy.exc import OperationalError
from tokenizers import Tokenizer, models

from protocol.disk import check_room, writing
from protocol.errors import InputError


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path / "file"))


def over_quota(path: Path) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def copying(path: Path) -> None:
    raise shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")])


def safetensors(path: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def tokenizers(path: Path) -> None:
    Tokenizer(models.BPE()).save("/dev/full")


def sqlite(path: Path) -> None:
    connection = sqlite3.connect(path / "store.db")
    try:
        connection.execute("PRAGMA max_page_count = 4")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (?)", (bytes(1 << 20),))
    except sqlite3.OperationalError as error:
        raise OperationalError("INSERT", (), error) from error
    finally:
        connection.close()


WAYS: list[Callable[[Path], None]] = [full, over_quota, copying, safetensors, sqlite]
if os.path.exists("/dev/full"):
    WAYS.append(tokenizers)


@pytest.mark.parametrize("fail", WAYS)
def test_a_full_disk_is_called_that_whoever_was_writing(fail: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, writing(tmp_path):
        fail(tmp_path)
    where = tmp_path / "file" if fail is full else tmp_path
    assert caught.value.message == f"{where}: the disk is full" and "space" in caught.value.hint


def test_a_file_that_may_not_grow_and_a_folder_that_is_closed_are_told_apart(tmp_path: Path) -> None:
    for number, told in ((errno.EFBIG, "a file may not grow so large"), (errno.EROFS, "cannot be written: Read-only")):
        with pytest.raises(InputError, match=told), writing(tmp_path):
            raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), ConnectionResetError(errno.ECONNRESET, "reset"), KeyboardInterrupt(), InputError("mine")],
)
def test_all_else_passes_as_it_is(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path):
        raise error
    assert caught.value is error


def test_room_is_looked_for_before_anything_is_written(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(InputError, match=r"the disk is full: 1,000,000,000,000,000\.0 MB are needed, .* are free"):
        check_room(tmp_path, 10**21)
    assert list(tmp_path.iterdir()) == []
