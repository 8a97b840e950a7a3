"""The socket of a running peer, for its owner alone: `potluck status`, `pause`, `resume` and `finish` talk to it.

A Unix socket `control` in the run's folder, which only its owner may enter; where the system tells who connects, that
is looked at too. One line of JSON is asked, one is answered:

    {"do":"pause","seconds":7200}       {"ok":true,"state":{...}}
    {"do":"dance"}                      {"ok":false,"why":"..."}
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from protocol.backoff import Backoff
from protocol.disk import disk_error
from protocol.errors import InputError, NetworkError, RefusedError
from protocol.parts import SupervisedThread, Told

NAME = "control"
MAX_ASKED_BYTES, MAX_ANSWER_BYTES = 4096, 1 << 20
CALL_S = 2.0  # for one question to arrive
ANSWER_S = 10.0  # for the answer
LOOK_S = 0.5
WAITING = 8  # connections
TRUSTED = (0,)  # other users that may ask: root

Do = Callable[[dict[str, Any]], dict[str, Any]]


class Control:
    """Answers while it is entered.

    Args:
        folder: of the run.
        do: what to do with a question, in this thread; an InputError becomes the answer.
    """

    def __init__(self, folder: Path, do: Do, told: Told) -> None:
        self._folder, self._do = folder, do
        self._closing = threading.Event()
        self._thread = SupervisedThread("control", self._forever, self._closing, told, Backoff(0.5, 30.0), vital=False)

    def __enter__(self) -> Control:
        with _place(self._folder) as place, contextlib.suppress(FileNotFoundError):
            os.unlink(place)  # of one that was killed: this process holds the folder's lock
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with _place(self._folder) as place:
                self._socket.bind(place)
        except OSError as error:
            self._socket.close()
            raise disk_error(self._folder / NAME, error) from error
        finally:
            os.umask(before)
        self._socket.listen(WAITING)
        self._socket.settimeout(LOOK_S)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(5.0)
        self._socket.close()
        with contextlib.suppress(OSError):
            (self._folder / NAME).unlink(missing_ok=True)

    def _forever(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            with connection, contextlib.suppress(OSError):  # whoever has gone away wants no answer
                connection.settimeout(CALL_S)
                connection.sendall(json.dumps(self._answer(connection)).encode() + b"\n")

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            line = _line(connection, MAX_ASKED_BYTES)  # whoever it is: else it may find a closed pipe, and no answer
            if not _is_owner(connection):
                raise InputError("this peer is another user's")
            asked = json.loads(line)
            if not isinstance(asked, dict):
                raise InputError("no question")
            return {"ok": True, **self._do(asked)}
        except InputError as error:
            return {"ok": False, "why": error.message}
        except (ValueError, RecursionError):
            return {"ok": False, "why": "no JSON in one line"}


def ask(folder: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """Ask the peer that runs in a folder; None: none does, or it is an older one that has no socket.

    Raises:
        RefusedError: it is another user's, or it does not do what was asked.
        NetworkError: it does not answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        try:
            with _place(folder) as place:
                connection.connect(place)
            connection.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(_line(connection, MAX_ANSWER_BYTES))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError as error:
            raise RefusedError(f"{folder}: the peer there is another user's", "ask as its owner") from error
        except (OSError, ValueError) as error:
            raise NetworkError(
                f"{folder}: the peer there does not answer ({error})", "look at its log; potluck leave ends it"
            ) from error
    if not isinstance(answer, dict) or not answer.get("ok"):
        raise RefusedError(str(answer.get("why", "it refused") if isinstance(answer, dict) else "it refused")[:300])
    return answer


def _line(connection: socket.socket, most: int) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        more = connection.recv(65536)
        data += more
        if not more or len(data) > most:
            break
    if len(data) > most:
        raise ValueError("too long")
    return data


def _is_owner(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user's, or root's; where that is not told, the folder's rights do."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", told)[1] in (os.getuid(), *TRUSTED)


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[str]:
    """The socket's path, short enough for the system, which takes some hundred bytes."""
    path = str(folder / NAME)
    if len(os.fsencode(path)) < 100 or not sys.platform.startswith("linux"):
        yield path
        return
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)
