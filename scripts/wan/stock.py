"""A peer of an arm that is not ours, as a process: its side of the talk with `others`.

Standard output, one JSON object a line: ready (addresses), worked (tokens, busy_s, late_s), state (path, tokens),
problem, ended. Standard input: "go", then "stop"; its end means stop, too, and that nobody needs this peer any more.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from peer.training.state import SharedState
from protocol.errors import FormatError
from scripts.wan.training import Pace, Task, say

TELL_S = 0.5
START_S = 300.0
LEAVE_S = 600.0  # the longest that one who has ended stays for the others


class Peer:
    """What a training script of `scripts/bench wan` has: the model, the data, a pace, a DHT, somebody to tell.

    Args:
        settings: name, task, address, initial_peers, out (None: keeps no states), tokens_per_s, target, compress,
            exchange_s.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import hivemind

        self.settings, self.name = settings, settings["name"]
        self.bench = Task.from_json(settings["task"]).open()
        self.pace = Pace(settings["tokens_per_s"])
        self._stop, self._go, self._leave = threading.Event(), threading.Event(), threading.Event()
        self._told, self._states = 0.0, 0
        self.dht = hivemind.DHT(
            start=True,
            host_maddrs=[f"/ip4/{settings['address']}/tcp/0"],
            initial_peers=settings["initial_peers"],
        )

    @classmethod
    def from_arguments(cls, text: str) -> Peer:
        return cls(json.loads(text))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            say("ended", error=repr(error))
        self.dht.shutdown()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def wait_for_go(self) -> None:
        """Say that all is ready, and wait until the others are. Raises: TimeoutError: nobody says so."""
        threading.Thread(target=self._listen, daemon=True).start()  # now that nothing will be forked any more
        say("ready", addresses=[str(address) for address in self.dht.get_visible_maddrs()])
        if not self._go.wait(START_S):
            raise TimeoutError(f"{self.name}: not told to begin within {START_S:.0f} s")

    def tell_progress(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._told >= TELL_S:
            self._told = time.monotonic()
            say("worked", tokens=self.pace.tokens, busy_s=self.pace.busy_s, late_s=self.pace.late_s)

    def tell_state(self, parameters: torch.Tensor) -> None:
        """The shared parameters have changed: keep them for the evaluation, if this peer is the one that does."""
        self.tell_progress(at_once=True)
        path = None
        if self.settings["out"] is not None:
            self._states += 1
            path = Path(self.settings["out"]) / f"state-{self._states:05d}.safetensors"
            try:
                SharedState(self._states, self.bench.genesis.names_shapes, parameters.detach().clone()).save(path)
            except FormatError as error:
                self.tell_problem(error.message)
                return
        say("state", path=str(path) if path else None, tokens=self.pace.tokens)

    def tell_problem(self, message: str) -> None:
        say("problem", message=message)

    def end(self) -> None:
        """All is done. Returns once the others are done, too: they may still be receiving this peer's last average."""
        self.tell_progress(at_once=True)
        say("ended", error=None)
        self._leave.wait(LEAVE_S)

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "go":
                self._go.set()
            elif line.strip() == "stop":
                self._stop.set()
        self._go.set()
        self._stop.set()
        self._leave.set()
