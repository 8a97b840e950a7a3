"""One member of a swarm in a test: its driver, and a trainer that trains nothing. `tests/swarm_kit.py` starts them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peer.net.driver import Driver
from peer.net.place import Callbacks, Place, SwarmConfig
from peer.round.box import Box
from peer.round.events import CoordinatorSaid
from peer.round.report import RoundReport
from peer.sync.averages import Average
from peer.sync.ledger_heads import LedgerHeads
from peer.sync.shelf import Head
from peer.training.state import SharedState
from peer.training.update import Update
from protocol.errors import RoundAborted
from protocol.parts import Told
from tests.memory_net import MemoryNode

if TYPE_CHECKING:
    from peer.net.node import Node
    from tests.swarm_kit import World

PATIENCE_S = 240.0  # for what is expected to happen; a quiet machine needs a twentieth of it
DEADLINE_S = 600.0  # below pytest-timeout's


def run(main: Coroutine[Any, Any, Any], timeout_s: float = DEADLINE_S) -> Any:
    """Run an async test; it fails when it takes too long."""
    return asyncio.run(asyncio.wait_for(main, timeout_s))


async def until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S, what: str = "") -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what or 'something'}"
        await asyncio.sleep(0.02)
    return value


@dataclass
class Ways:
    """What is different about one member.

    Args:
        tokens, work_s: how much its trainer does for a round, and how long that takes.
        certificate: None: one that holds.
        saves, keeps: its disk, for boxes and for heads; may raise OSError.
        on_stage, on_candidate, on_failure: as `Callbacks` and `Driver` have them.
    """

    tokens: int = 400
    work_s: float = 0.0
    box: Box = field(default_factory=Box)
    certificate: Callable[[], str] | None = None
    saves: Callable[[bytes], None] = lambda data: None
    keeps: Callable[[Head], None] = lambda head: None
    on_stage: Callable[[int, str], None] = lambda round, stage: None
    on_candidate: Callable[[SharedState, Average | None], None] = lambda state, average: None
    on_failure: Told = lambda failure: None


class Peer:
    """One driver with a trainer that trains nothing."""

    def __init__(
        self, world: World, index: int, node: Node | MemoryNode, head: Head, ways: Ways, config: SwarmConfig
    ) -> None:
        self.world, self.index, self.node, self.ways = world, index, node, ways
        self.tokens, self.work_s = ways.tokens, ways.work_s
        self.heads: list[Head] = []
        self._first = head.round
        self.reports: list[RoundReport] = []
        self.handed_over: list[str] = []  # bases of the updates
        self.saved: list[bytes] = []
        self.aborted: list[str] = []  # why attempts came to nothing
        token = world.certificate(index, reducer=config.reduce_only)
        certificate = ways.certificate or (lambda: token)
        self.evidence: dict[str, bytes] = {}
        self.ledger = LedgerHeads(world.card, self.evidence.__setitem__)
        place = Place(
            world.identity(index), world.card, certificate, head, ways.box, self._save, config=config, heads=self.ledger
        )
        callbacks = Callbacks(
            self._committed, ways.on_candidate, ways.on_stage, lambda round, attempt, why: self.aborted.append(why)
        )
        self.driver = Driver(node, place, callbacks, ways.on_failure)  # type: ignore[arg-type]
        self.driver.post(CoordinatorSaid(0, world.named))
        self.me = self.driver.me
        self._trainer: asyncio.Task[None] | None = None
        self._vanished = False

    def _save(self, data: bytes) -> None:
        self.ways.saves(data)
        self.saved.append(data)

    async def _committed(self, head: Head, report: RoundReport) -> None:
        self.ways.keeps(head)
        self.heads.append(head)
        self.reports.append(report)

    @property
    def round(self) -> int:
        return self.driver.head.round

    @property
    def kept(self) -> int:
        """The newest round that its owner has heard of."""
        return self.heads[-1].round if self.heads else self._first

    @property
    def waiting_for(self) -> str:
        """The key of the reason why no round is made."""
        waiting = self.driver.waiting_for
        return waiting.key if waiting else ""

    def state(self, round: int) -> str | None:
        """The digest this peer committed for a round."""
        return next((head.digest for head in self.heads if head.round == round), None)

    def train(self) -> None:
        self._trainer = asyncio.create_task(self._train())

    async def _train(self) -> None:
        while True:
            head = self.driver.begin_work()
            await asyncio.sleep(self.work_s)
            self.driver.worked(self.tokens, 0.0)
            await until(self.driver.own.close.is_set, 600)
            self.handed_over.append(head.digest)
            try:
                await self.driver.finish_work(self.update(head), head.digest)
            except RoundAborted:
                return

    def update(self, head: Head) -> Update:
        vector = self.world.update(self.index, head.round + 1)
        return Update(vector, self.tokens, 0, -(-self.tokens // 16), 1)

    async def stop(self) -> None:
        """Leave as a good member does, unless it is gone already."""
        if not self._vanished:
            await self.driver.leave()
        await self._end_trainer()

    async def vanish(self) -> None:
        """Be gone without a word, as after kill -9; what is left of the driver talks to nobody."""
        self._vanished = True
        if isinstance(self.node, MemoryNode):
            self.node.vanish()
        else:
            os.kill(self.node._p2p._child.pid, 9)
        await self._end_trainer()
        await self.driver.talk.close()

    async def _end_trainer(self) -> None:
        if self._trainer is not None:
            self._trainer.cancel()
            await asyncio.gather(self._trainer, return_exceptions=True)


async def quietly(awaitable: Awaitable[Any]) -> None:
    with contextlib.suppress(Exception):
        await awaitable
