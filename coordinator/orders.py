"""What the owner of a run tells its running host, over files in the run's folder: only who may write there can.

answer = ask(Path("runs/demo"), "ban", peer="Qm3zYw", reason="sends noise")        another process
Orders(folder, {"ban": bans.ban}).look()                                           the host, each second
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protocol import files
from protocol.disk import write_file
from protocol.errors import FormatError, InputError, NetworkError, RefusedError

logger = logging.getLogger(__name__)

ORDER, ANSWER = "order", "answer"  # files are order.HEX and answer.HEX
ANSWER_S = 15.0  # for a running host to answer
KEPT_S = 60.0  # that an answer lies there
MAX_ORDER_BYTES = 4096


class Orders:
    """Carries out what is asked for.

    Args:
        folder: the run's.
        can: what an order is called -> what does it, given its values by name; it returns what there is to tell.
    """

    def __init__(self, folder: Path, can: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
        self._folder, self._can = folder, can

    def look(self) -> None:
        """Carry out all that is there."""
        for path in sorted(self._folder.glob(f"{ORDER}.*")):
            answer = self._answer(path)
            path.unlink(missing_ok=True)
            write_file(self._folder / f"{ANSWER}{path.suffix}", json.dumps(answer).encode(), private=True)
        for path in self._folder.glob(f"{ANSWER}.*"):  # of whoever did not wait for it: it may hold an invite
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()

    def _answer(self, path: Path) -> dict[str, Any]:
        try:
            order = json.loads(files.read_bounded(path, MAX_ORDER_BYTES))
            return {"ok": True, **self._can[order.pop("do")](**order)}
        except (RefusedError, InputError, NetworkError, FormatError) as error:
            return {"ok": False, "reason": error.message, "hint": error.hint}
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.exception("an order that is none: %s", path.name)
            return {"ok": False, "reason": "the host does not know this order", "hint": "it may be of another version"}


def ask(folder: Path, do: str, timeout_s: float = ANSWER_S, **values: object) -> dict[str, Any]:
    """The owner's order to the host that runs on this folder, and what came of it.

    Raises:
        InputError: there is no such folder, or no host runs on it.
        RefusedError: the host says no.
    """
    if not (folder / "run.toml").is_file() and not (folder / "ledger.db").is_file():
        raise InputError(f"{folder} is not a run's folder", "give the folder that `potluck host` keeps, as runs/NAME")
    name = os.urandom(8).hex()
    order, answered = folder / f"{ORDER}.{name}", folder / f"{ANSWER}.{name}"
    write_file(order, json.dumps({"do": do, **values}).encode(), private=True)
    deadline = time.monotonic() + timeout_s
    while not answered.is_file():
        if time.monotonic() >= deadline:
            order.unlink(missing_ok=True)
            raise InputError(f"no host answered on {folder} within {timeout_s:.0f} s", "start it with `potluck host`")
        time.sleep(0.1)
    answer: dict[str, Any] = json.loads(answered.read_bytes())
    answered.unlink(missing_ok=True)
    if not answer.pop("ok"):
        raise RefusedError(str(answer["reason"]), str(answer["hint"]))
    return answer
