"""The socket by which a running peer hears its owner: bounded, for one user, and never in the way."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peer.limits import control
from peer.limits.control import MAX_ASKED_BYTES, NAME, Control, ask
from protocol.errors import InputError, NetworkError, RefusedError


def do(asked: dict[str, Any]) -> dict[str, Any]:
    if asked.get("do") != "status":
        raise InputError("nothing here is called that")
    return {"state": asked.get("say", 1)}


@contextmanager
def controlled(folder: Path) -> Iterator[Control]:
    failures: list[object] = []
    with Control(folder, do, failures.append) as answering:
        yield answering
    assert not failures and not (folder / NAME).exists()
    assert not [part for part in threading.enumerate() if part.name == "control"]


@pytest.mark.parametrize("depth", [0, 12], ids=["short", "a path longer than a socket's may be"])
def test_a_question_is_answered_and_only_the_owner_may_ask(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["as-long-as-a-name"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    assert ask(folder, {"do": "status"}) is None, "nobody is there"
    with controlled(folder):
        assert ask(folder, {"do": "status", "say": "啊"}) == {"ok": True, "state": "啊"}
        with pytest.raises(RefusedError, match="called that"):
            ask(folder, {"do": "dance"})
        assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o600
    assert ask(folder, {"do": "status"}) is None


def test_what_a_killed_peer_left_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / NAME))
    assert ask(tmp_path, {"do": "status"}) is None
    with controlled(tmp_path):
        assert ask(tmp_path, {"do": "status"}) is not None


@pytest.mark.parametrize(
    "line", [b"\n", b"no json\n", b"[]\n", b"7\n", b"\xff\xff\n", b"[" * 3000 + b"\n", b"x" * (2 * MAX_ASKED_BYTES)]
)
def test_whatever_is_sent_gets_one_line_and_the_next_is_served(tmp_path: Path, line: bytes) -> None:
    with controlled(tmp_path):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(tmp_path / NAME))
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            answer = json.loads(connection.makefile().readline())
        assert answer["ok"] is False and answer["why"]
        assert ask(tmp_path, {"do": "status"}) is not None


def test_who_says_nothing_holds_up_the_next_for_a_moment_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CALL_S", 0.2)
    with controlled(tmp_path), socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / NAME))
        assert ask(tmp_path, {"do": "status"}) is not None


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(control, "TRUSTED", ())
    with controlled(tmp_path):
        with pytest.raises(RefusedError, match="another user's"):
            ask(tmp_path, {"do": "status"})
        with socket.socket(socket.AF_UNIX) as slow:
            slow.connect(str(tmp_path / NAME))
            time.sleep(0.1)
            slow.sendall(b"{}\n")
            assert "another user" in json.loads(slow.makefile().readline())["why"]


def test_a_peer_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ANSWER_S", 0.3)
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(tmp_path / NAME))
        hangs.listen(1)
        with pytest.raises(NetworkError, match="does not answer"):
            ask(tmp_path, {"do": "status"})
