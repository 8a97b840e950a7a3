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
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from peer.round_rules import BallotBox
from peer.swarm.averages import Average
from peer.swarm.head import Head
from peer.swarm.last_copy import Copies
from peer.swarm.members import MemberView
from peer.swarm.node import Node
from peer.swarm.pace import Limits
from peer.swarm.records import RecordValidator, members_key, open_record, sign_record
from peer.swarm.rounds import RoundReport, Rounds
from peer.training.codecs.codec import EncodedUpdate
from peer.training.work import Update
from protocol.agreement import Agreement
from protocol.backoff import Backoff
from protocol.beginners import open_beginners
from protocol.errors import FormatError, NetworkError, RefusedError, SignatureError
from protocol.keys import PeerIdentity
from protocol.parts import Failure, Part, Told
from protocol.run_card import RunCard

logger = logging.getLogger(__name__)

SEARCH_INTERVAL_S, SEARCH_MOST_S = 3.0, 60.0  # the latter after many failures that nobody foresaw
RECORD_INTERVAL_S = 15.0
RECONNECT_S = 15.0  # before an address is tried again whose peer was reached and is not heard
MAX_CONTACTS = 4096  # addresses remembered, whoever announces more
START_TIMEOUT_S = 90.0
CLOSE_TIMEOUT_S = 30.0
END_TASKS_S = 3.0
T = TypeVar("T")


class DaemonEnded(NetworkError):
    """p2pd has died under the swarm, which can do nothing any more."""


@dataclass(frozen=True)
class SwarmConfig:
    """How this peer stands in the network; the owner's own choice."""

    listen: str = "0.0.0.0:0"
    announce: str | None = None
    can_reduce: bool = True
    reduce_only: bool = False  # without a trainer; the certificate must say that the host trusts this peer
    limits: Limits = field(default_factory=Limits)


class Swarm:
    """Everything between the trainer and the other members.

    Args:
        on_commit: called in a thread with each new head, what is to be said of its round, and the average that led to it,
            if that is known; the next round begins when it returns.
        on_failure: told of each part that fails by a mistake of ours. When a vital one has ended, every call of the
            trainer's raises PartFailed: the swarm can do nothing any more, and another may be made from what is on disk.
    """

    def __init__(
        self,
        identity: PeerIdentity,
        identity_path: Path,
        card: RunCard,
        certificate: Callable[[], str],
        box: BallotBox,
        head: Head,
        on_commit: Callable[[Head, RoundReport, Average | None], None],
        config: SwarmConfig,
        on_stage: Callable[[int, str], None] = lambda round, stage: None,
        on_failure: Told = lambda failure: None,
    ) -> None:
        self._on_stage, self._on_failure = on_stage, on_failure
        self._identity, self._identity_path, self._card = identity, identity_path, card
        self._certificate, self._box = certificate, box
        self._first_head: Head | None = head  # until there is an engine: it is as large as the model
        self._on_commit, self._config = on_commit, config
        self._loop = asyncio.new_event_loop()
        self._closing = threading.Event()
        self._thread = Part("swarm", self._loop.run_forever, self._closing, self._failed)
        self._node: Node | None = None
        self._engine: Rounds | None = None
        self._daemon_ended = threading.Event()
        self._is_quiet = False  # tells nobody that it leaves
        self._failure: Failure | None = None  # of a vital part
        self._addresses: dict[str, float] = {}  # address -> when it was last reached, time.monotonic(); < 0: never

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
    def waiting_for(self) -> str:
        """Why no round is being made, in words for the owner; empty when nothing is missing."""
        return self._rounds.company.waiting_for

    @property
    def addresses(self) -> list[str]:
        return list(self._rounds.addresses)

    def members(self) -> list[MemberView]:
        """The other live members."""
        return self._run(_value(self._rounds.book.alive), 5.0)

    def keep_quiet(self) -> None:
        """Tell nobody that this member leaves, and hand its weight to nobody."""
        self._is_quiet = True

    def begin_leaving(self) -> None:
        """Make no round any more; what is here the others may still fetch. Raises: NetworkError: it took too long."""
        self._run(self._rounds.begin_leaving(), CLOSE_TIMEOUT_S)

    def copies(self) -> Copies:
        """Who else has the newest state; asks them. Raises: NetworkError: it took too long."""
        return self._run(self._rounds.copies(), CLOSE_TIMEOUT_S)

    def set_run(self, ledger_round: int, named: bytes) -> None:
        """What the coordinator says before round 1: how far the run is already, and whom it has named to begin.

        Until it has named somebody, this member makes no first round; from round 2 on the members need nobody's word.
        """
        company = self._rounds.company
        company.ledger_round = ledger_round
        if not named or company.named:  # the word is final
            return
        try:
            open_beginners(named, self._card.member_key, run=self._card.run)
        except (FormatError, RefusedError) as error:
            logger.warning("the coordinator names beginners, and that does not hold: %s", error.message)
        else:
            company.named = named

    @property
    def wants_anchor(self) -> bool:
        """Others are so far ahead that they cannot show all the way from here: the coordinator's ledger can."""
        return self._rounds.catch_up.wants_anchor

    def set_anchor(self, agreement: Agreement) -> None:
        """A round as the coordinator's ledger has it, its signatures checked."""
        self._rounds.catch_up.anchor = agreement

    def chain_since(self, round: int) -> list[bytes]:
        """The agreements of the rounds after one, oldest first, up to the newest; empty when some are not known here.

        Raises:
            NetworkError: it took too long.
        """
        return self._run(_value(lambda: self._rounds.position.chain_to_head(round)), 5.0)

    def begin_work(self) -> Head:
        """The head to train from. Raises: DaemonEnded, PartFailed."""
        self.check()
        head = self._run(_value(self._rounds.begin_work), 5.0)
        self.check()  # once more: what ended meanwhile has closed the work that was begun just now
        return head

    def part_of(self, head: Head) -> EncodedUpdate | None:
        """What of this member's own work a head was made with; None: nothing, or it is not known any more."""
        return self._rounds.own.part_of(head)

    def report_progress(self, tokens: int | None, step_s: float) -> None:
        """Say how far the work of this round is; costs the trainer nothing.

        Args:
            tokens: None: as before. What is done before a round has begun is not told.
        """
        progress = self._rounds.own.progress
        progress.step_s = step_s
        if tokens is not None:
            progress.tokens = tokens

    def hand_over(self, update: Update, base: str) -> Future[Head]:
        """Hand over an update, which is used up; `next_head` tells what comes of it. Raises: DaemonEnded, PartFailed."""
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
        self._loop.call_soon_threadsafe(lambda wanted: self._rounds.talk.spawn(self._connect(wanted)), set(addresses))

    # ---- on the loop -------------------------------------------------------------------------------------------------

    @property
    def _rounds(self) -> Rounds:
        assert self._engine is not None, "the swarm has not been entered"
        return self._engine

    async def _start(self) -> None:
        config, first = self._config, self._first_head
        assert first is not None, "a swarm is entered once"
        self._node = await Node.start(
            self._identity_path, listen=config.listen, announce=config.announce, validator=RecordValidator()
        )
        self._engine = Rounds(
            self._node,
            self._identity,
            self._card,
            self._certificate,
            self._box,
            first,
            self._committed,
            can_reduce=config.can_reduce,
            reduce_only=config.reduce_only,
            limits=config.limits,
            on_stage=self._on_stage,
            on_failure=self._failed,
        )
        self._first_head = None
        self._engine.addresses = await self._node.addresses()
        await self._engine.start()
        talk, restarts = self._engine.talk, Backoff(SEARCH_INTERVAL_S, SEARCH_MOST_S)
        talk.keep("search", self._search_forever, restarts, vital=False)
        node = self._node
        talk.keep("p2pd-watch", lambda: self._watch_daemon(node), is_over=self._daemon_ended.is_set)

    def _failed(self, failure: Failure) -> None:
        """On the loop, or in its thread as it ends."""
        if failure.is_final:
            self._failure = failure
            self._wake_trainer()
        self._on_failure(failure)

    def _wake_trainer(self) -> None:
        """It hands over soon, and is told then."""
        if self._engine is not None:
            self._engine.own.close.set()

    async def _watch_daemon(self, node: Node) -> None:
        await node.daemon_ended()
        self._daemon_ended.set()
        self._wake_trainer()

    async def _close(self) -> None:
        if self._engine is not None:
            is_quiet = self._is_quiet or self._failure is not None or self._daemon_ended.is_set()
            await self._engine.leave(comes_back=is_quiet)
        if self._node is not None:
            await self._node.close()

    async def _committed(self, head: Head, report: RoundReport) -> None:
        average = self._rounds.position.average(head.digest)
        await self._loop.run_in_executor(None, self._on_commit, head, report, average)

    async def _connect(self, addresses: set[str]) -> None:
        assert self._node is not None
        now, alive = time.monotonic(), {view.peer_id for view in self._rounds.book.alive()}
        wanted = {
            address
            for address in addresses
            if address.rpartition("/")[2] not in alive
            and now - self._addresses.get(address, -RECONNECT_S) >= RECONNECT_S
        }
        for address in list(wanted)[: max(0, MAX_CONTACTS - len(self._addresses))]:
            self._addresses.setdefault(address, -RECONNECT_S)  # who is not reached is tried again
        reached = await self._node.connect(wanted)
        self._rounds.gossip.contacts |= reached
        known = wanted & self._addresses.keys()
        self._addresses |= {address: now for address in known if address.rpartition("/")[2] in reached}

    async def _reconnect(self) -> None:
        """After an outage libp2p may have forgotten where everyone is; the coordinator may be away."""
        if not self._rounds.book.alive():
            await self._connect(set(self._addresses))

    async def _search_forever(self) -> None:
        """Say where we are, and look who else is there; never ends."""
        stored_at = -RECORD_INTERVAL_S
        while True:
            try:
                if time.monotonic() - stored_at >= RECORD_INTERVAL_S:
                    await self._store_record()
                    stored_at = time.monotonic()
                await self._reconnect()
                await self._find_members()
            except (TimeoutError, NetworkError) as error:
                logger.debug("search: %s", error)
            await asyncio.sleep(SEARCH_INTERVAL_S)

    async def _store_record(self) -> None:
        assert self._node is not None
        self._rounds.addresses = await self._node.addresses()
        value, expires = sign_record(
            self._identity, run=self._card.run, certificate=self._certificate(), addresses=self._rounds.addresses
        )
        await self._node.store_record(members_key(self._card.run), self._identity.peer_id, value, expires)

    async def _find_members(self) -> None:
        assert self._node is not None
        known = {view.peer_id for view in self._rounds.book.alive()} | {self._identity.peer_id}
        found: set[str] = set()
        for peer_id, value in (await self._node.find_records(members_key(self._card.run))).items():
            if peer_id in known:
                continue
            try:
                signer, record = open_record(value)
                self._rounds.book.admit(peer_id, record.certificate)
            except (FormatError, SignatureError, RefusedError) as error:
                logger.debug("a member record that is none: %s", error.message)
                continue
            if signer == peer_id and record.run == self._card.run:
                found |= {address for address in record.addresses if address.endswith(f"/p2p/{peer_id}")}
        if found:
            self._rounds.gossip.contacts |= await self._node.connect(found)

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
