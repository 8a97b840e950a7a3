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

from protocol.disk import check_room, write_file, writing
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


# ---- a file that is written ------------------------------------------------------------------------------------------


def unfinished(path: Path) -> Path:
    """What a file is called until it is whole."""
    return path.with_name(f".{path.name}.potluck.new")


def test_a_private_file_is_private_whatever_a_crash_left_in_its_way(tmp_path: Path) -> None:
    key = tmp_path / "key"
    unfinished(key).write_bytes(b"half of a ke")
    unfinished(key).chmod(0o644)
    write_file(key, b"secret", private=True)
    assert key.read_bytes() == b"secret" and key.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [key], "what the crash left is gone"


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    folder, others = tmp_path / "mine", tmp_path / "others"
    folder.mkdir()
    others.write_bytes(b"theirs")
    for name in ("unfinished", "target"):
        key = folder / name
        (unfinished(key) if name == "unfinished" else key).symlink_to(others)
        write_file(key, b"secret", private=True)
        assert not key.is_symlink() and key.read_bytes() == b"secret"
    assert others.read_bytes() == b"theirs" and len(list(folder.iterdir())) == 2


def test_a_link_that_comes_at_the_last_moment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others, key = tmp_path / "others", tmp_path / "key"
    others.write_bytes(b"theirs")
    unlink = Path.unlink

    def and_put_there(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        path.symlink_to(others)

    monkeypatch.setattr(Path, "unlink", and_put_there)
    with pytest.raises(InputError, match="cannot be written: File exists"):
        write_file(key, b"secret", private=True)
    assert others.read_bytes() == b"theirs" and not key.exists()


def test_a_file_of_the_users_own_that_is_called_new_stays(tmp_path: Path) -> None:
    (tmp_path / "me.json.new").write_bytes(b"a letter")
    write_file(tmp_path / "me.json", b"{}")
    assert (tmp_path / "me.json.new").read_bytes() == b"a letter"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_file(tmp_path / "key", b"first")
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(InputError, match="the disk is full"):
        write_file(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first" and len(list(tmp_path.iterdir())) == 1
