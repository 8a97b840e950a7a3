"""The swarm as the trainer sees it: a thread with a node, the rounds, and the search for other members.

    with Swarm(...) as swarm:
        head = swarm.begin_work()
        ... train until swarm.close_work.is_set() ...
        handed = swarm.hand_over(update, head.state.digest)
        while (next := swarm.next_head(handed, 0.2)) is None: ...

Members find each other in the DHT by their signed records; the addresses that the coordinator gives are only where to
begin, so the search goes on while it is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from peer.net import calls
from peer.net.driver import Driver
from peer.net.last_copy import Copies
from peer.net.node import Node
from peer.net.place import Callbacks, Place, SwarmConfig
from peer.net.records import RecordValidator
from peer.net.search import SEARCH_INTERVAL_S, MemberSearch
from peer.net.traffic import Traffic
from peer.round import follow, views
from peer.round.events import Anchored, Event
from peer.round.report import RoundReport
from peer.round.state import View
from peer.round.turns import Waiting
from peer.sync.averages import Average
from peer.sync.own_work import OwnWork
from peer.sync.shelf import Head
from peer.training.state import SharedState
from peer.training.update import Update
from protocol.agreement import Agreement
from protocol.backoff import Backoff
from protocol.errors import NetworkError
from protocol.parts import Failure, SupervisedThread, Told

logger = logging.getLogger(__name__)

SEARCH_MOST_S = 60.0  # between two, after many failures that nobody foresaw
START_TIMEOUT_S = 90.0
CLOSE_TIMEOUT_S = 30.0
END_TASKS_S = 3.0
T = TypeVar("T")


__all__ = ["DaemonEnded", "Swarm", "SwarmConfig"]


class DaemonEnded(NetworkError):
    """p2pd has died under the swarm, which can do nothing any more."""


class Swarm:
    """Everything between the trainer and the other members.

    Args:
        on_commit: called in a thread with each new head, what is to be said of its round, and the average that led to
            it, if that is known; the next round begins when it returns.
        on_candidate: called in a thread before this member votes for a state: keeps what led to it.
        on_failure: told of each part that fails by a mistake of ours. When a vital one has ended, every call of the
            trainer's raises PartFailed: the swarm can do nothing more, and another may be made from what is on disk.
    """

    def __init__(
        self,
        place: Place,
        identity_path: Path,
        on_commit: Callable[[Head, RoundReport, Average | None], None],
        on_candidate: Callable[[SharedState, Average | None], None] = lambda state, average: None,
        on_stage: Callable[[int, str], None] = lambda round, stage: None,
        on_failure: Told = lambda failure: None,
    ) -> None:
        self._on_failure, self._on_commit = on_failure, on_commit
        self._callbacks = Callbacks(self._committed, on_candidate, on_stage)
        self._identity_path, self._card, self._config = identity_path, place.card, place.config
        self._place: Place | None = place  # until there is a driver: its head is as large as the model
        self._loop = asyncio.new_event_loop()
        self._closing = threading.Event()
        self._thread = SupervisedThread("swarm", self._loop.run_forever, self._closing, self._failed)
        self._node: Node | None = None
        self._driver: Driver | None = None
        self._search: MemberSearch | None = None
        self._daemon_ended = threading.Event()
        self._is_quiet = False  # tells nobody that it leaves
        self._failure: Failure | None = None  # of a vital part

    def __enter__(self) -> Swarm:
        self._thread.start()
        with ExitStack() as undo:
            undo.callback(self._stop_loop)
            self._run(self._start(), START_TIMEOUT_S)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._thread.is_alive:
                self._run(self._close(), CLOSE_TIMEOUT_S)
            else:  # what it has opened is closed all the same
                self._loop.run_until_complete(asyncio.wait_for(self._close(), CLOSE_TIMEOUT_S))
        finally:
            self._stop_loop()

    # ---- the trainer's calls -----------------------------------------------------------------------------------------

    @property
    def close_work(self) -> threading.Event:
        """Set when the trainer is to finish its micro-batch and hand over."""
        return self._rounds.own.close

    @property
    def head(self) -> Head:
        return self._rounds.head

    @property
    def waiting_for(self) -> Waiting | None:
        """Why no round is being made; None when nothing is missing."""
        return self._rounds.waiting_for

    @property
    def addresses(self) -> list[str]:
        return list(self._rounds.addresses)

    @property
    def known_addresses(self) -> set[str]:
        """Where to look for other members."""
        return set(self._searching.addresses)

    @property
    def traffic(self) -> Traffic:
        """Bytes on this member's streams so far."""
        assert self._node is not None, "the swarm has not been entered"
        return self._node.traffic

    def members(self) -> list[View]:
        """The other live members."""
        driver = self._rounds
        return self._run(_value(lambda: views.alive(driver.state, time.monotonic())), 5.0)

    def member_addresses(self) -> set[str]:
        """Where they said that they are."""
        return {address for view in self.members() for address in self._rounds.roster.addresses(view.peer)}

    def keep_quiet(self) -> None:
        """Tell nobody that this member leaves, and hand its weight to nobody."""
        self._is_quiet = True

    def begin_leaving(self) -> None:
        """Make no round any more; what is here the others may still fetch. Raises: NetworkError: it took too long."""
        self._run(self._rounds.begin_leaving(), CLOSE_TIMEOUT_S)

    def copies(self) -> Copies:
        """Who else has the newest state; asks them. Raises: NetworkError: it took too long."""
        return self._run(self._rounds.copies(), CLOSE_TIMEOUT_S)

    def set_run(self, ledger_round: int, named: bytes, banned: bytes = b"") -> None:
        """What the coordinator says: how far the run is, whom it has named to begin, and whom it has banned, if newer.

        Until it has named somebody, this member makes no first round; from round 2 on the members need nobody's word.
        """
        self._loop.call_soon_threadsafe(calls.coordinator_said, self._rounds, ledger_round, named, banned)

    @property
    def bans(self) -> int:
        """The number of the list of banned members that this one has."""
        return self._rounds.bans.number

    @property
    def wants_anchor(self) -> bool:
        """Others are so far ahead that they cannot show all the way from here: the coordinator's ledger can."""
        return follow.lacks_anchor(self._rounds.state)

    def set_anchor(self, agreement: Agreement) -> None:
        """A round as the coordinator's ledger has it, its signatures checked."""
        self._post(Anchored(agreement))

    def chain_since(self, round: int) -> list[bytes]:
        """The agreements of the rounds after one, oldest first, up to the newest; empty when some are not known here.

        Raises:
            NetworkError: it took too long.
        """
        return self._run(_value(lambda: self._rounds.shelf.chain_to_head(round)), 5.0)

    def begin_work(self) -> Head:
        """The head to train from. Raises: DaemonEnded, PartFailed."""
        self.check()
        head = self._run(_value(self._rounds.begin_work), 5.0)
        self.check()  # once more: what ended meanwhile has closed the work that was begun just now
        return head

    @property
    def own(self) -> OwnWork:
        return self._rounds.own

    def report_progress(self, tokens: int | None, step_s: float) -> None:
        """Say how far the work of this round is; costs the trainer nothing.

        Args:
            tokens: None: as before. What is done before a round has begun is not told.
        """
        self._loop.call_soon_threadsafe(self._rounds.worked, tokens, step_s)

    def hand_over(self, update: Update, base: str) -> Future[Head]:
        """Hand over an update, which is used up; `next_head` tells the outcome. Raises: DaemonEnded, PartFailed."""
        self.check()
        return asyncio.run_coroutine_threadsafe(self._rounds.finish_work(update, base), self._loop)

    def next_head(self, handed: Future[Head], timeout_s: float) -> Head | None:
        """The head after a hand-over, whether the update is part of it or not; None when there is none so soon.

        Raises:
            RoundAborted: this peer is leaving.
            DaemonEnded: there is no network any more.
            PartFailed: no round can be made here any more.
        """
        try:
            return handed.result(timeout=timeout_s)
        except TimeoutError:
            if handed.done():
                raise
            self.check()
            return None

    def check(self) -> None:
        """Raises: DaemonEnded: there is no network any more. PartFailed: no round can be made here any more."""
        if self._failure is not None:
            raise self._failure.error()
        if self._daemon_ended.is_set():
            raise DaemonEnded("libp2p's daemon, p2pd, has ended", "it is started again")

    def add_addresses(self, addresses: Iterable[str]) -> None:
        """Where other members, or the rendezvous, may be found."""
        wanted = set(addresses)
        self._loop.call_soon_threadsafe(lambda: self._rounds.talk.spawn(self._searching.connect(wanted)))

    def reconnect(self) -> None:
        """This computer slept, or is elsewhere now: what is open may be dead."""
        self._loop.call_soon_threadsafe(lambda: self._rounds.talk.spawn(self._searching.reconnect()))

    # ---- on the loop -------------------------------------------------------------------------------------------------

    @property
    def _rounds(self) -> Driver:
        assert self._driver is not None, "the swarm has not been entered"
        return self._driver

    @property
    def _searching(self) -> MemberSearch:
        assert self._search is not None, "the swarm has not been entered"
        return self._search

    def _post(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._rounds.post, event)

    async def _start(self) -> None:
        config, place = self._config, self._place
        assert place is not None, "a swarm is entered once"
        self._node = node = await Node.start(
            self._identity_path,
            listen=config.listen,
            announce=config.announce,
            validator=RecordValidator(),
            rates=config.rates,
        )
        self._driver = driver = Driver(node, place, self._callbacks, self._failed)
        self._search = MemberSearch(node, driver, place.identity, place.certificate)
        self._place = None
        driver.addresses = await node.addresses()
        await driver.start()
        driver.talk.keep("search", self._search.forever, Backoff(SEARCH_INTERVAL_S, SEARCH_MOST_S), vital=False)
        driver.talk.keep("p2pd-watch", lambda: self._watch_daemon(node), is_over=self._daemon_ended.is_set)

    def _failed(self, failure: Failure) -> None:
        """On the loop, or in its thread as it ends."""
        if failure.is_final:
            self._failure = failure
            self._wake_trainer()
        self._on_failure(failure)

    def _wake_trainer(self) -> None:
        """It hands over soon, and is told then."""
        if self._driver is not None:
            self._driver.own.close.set()

    async def _watch_daemon(self, node: Node) -> None:
        await node.daemon_ended()
        self._daemon_ended.set()
        self._wake_trainer()

    async def _close(self) -> None:
        if self._driver is not None:
            is_quiet = self._is_quiet or self._failure is not None or self._daemon_ended.is_set()
            await self._driver.leave(comes_back=is_quiet)
        if self._node is not None:
            await self._node.close()

    async def _committed(self, head: Head, report: RoundReport) -> None:
        average = self._rounds.shelf.average(head.digest)
        await self._loop.run_in_executor(None, self._on_commit, head, report, average)

    def _run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout=timeout_s)
        except TimeoutError as error:
            future.cancel()
            raise NetworkError(f"the swarm's thread did not answer within {timeout_s:.0f} s") from error

    def _stop_loop(self) -> None:
        with contextlib.suppress(NetworkError):
            if self._thread.is_alive:
                self._run(_end_tasks(), CLOSE_TIMEOUT_S)
            else:
                self._loop.run_until_complete(_end_tasks())
        self._closing.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread.join(5.0):
            self._loop.close()


async def _end_tasks() -> None:
    """End what still runs in this loop: hivemind leaves tasks of its own behind, and asyncio would complain of each."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=END_TASKS_S)


def _value(function: Callable[[], T]) -> Coroutine[Any, Any, T]:
    async def call() -> T:
        return function()

    return call()
