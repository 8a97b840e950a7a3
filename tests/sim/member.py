"""One simulated member: `peer.round.core` as it ships, with a disk and a trainer that are made up."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peer.round import actions as a
from peer.round import events as e
from peer.round.box import Box
from peer.round.core import Core
from peer.round.state import NEVER, Config, Timing
from protocol import canonical
from protocol.agreement import Agreement
from protocol.signed import Signed
from protocol.statements import MAX_ATTEMPT, Claim, Late, UpdateDigest
from protocol.succession import Last
from tests.sim import hostile
from tests.sim.spec import CHUNK_VALUES, RUN, VALUES, WIRE
from tests.sim.tasks import is_digest_of

if TYPE_CHECKING:
    from tests.sim.world import World

# a tick of a plan is the unit of time; a message takes one
TIMING = Timing(
    look_s=0.5,
    poll_s=2,
    next_in_line_s=4,
    hold_most_s=3,
    propose_least_s=6,
    propose_most_s=6,
    retry_most_s=6,
    quick_s=5,
    look_while_busy_s=3,
    majority_s=8,
    linger_s=1,
    vote_again_s=3,
    relay_s=5,
    behind_s=1,
    head_soon_s=4,
    head_most_s=8,
    head_failed_s=6,
    search_again_s=2,
    leave_s=5,
    gossip_s=1.5,
    alive_s=6,
    call_s=6,
    call_most_s=12,
    forget_s=400,
)
WORK, HAND_OVER = 2, 0.5  # ticks
UPDATE = UpdateDigest(root="0" * 64, values=VALUES, chunk_values=CHUNK_VALUES, codec=WIRE)
MANY = 10**6  # batches: as many as any tokens need


@dataclass(frozen=True)
class Leftover:
    """Work that was in no round yet; as `peer.sync.contribution.Leftover` has it."""

    works: tuple[int, ...]  # numbers
    since: int  # the first round that it was done for
    base: str
    tokens: int
    waited: bool = False

    def with_later(self, later: Leftover) -> Leftover:
        return replace(self, works=(*self.works, *later.works), tokens=self.tokens + later.tokens)

    def statement(self, round: int) -> Late:
        waited = round - self.since if self.waited else None
        return Late(base=self.base, tokens=self.tokens, first_batch=0, batches=MANY, waited=waited)


@dataclass
class Disk:
    """What is left after a kill."""

    last: Last
    state: dict[str, str]  # digest -> the state itself, a sentence: of `last`
    box: Box = field(default_factory=Box)
    averaged: dict[str, str] = field(default_factory=dict)  # of the last all-reduce
    chain: dict[int, Agreement] = field(default_factory=dict)


class Member:
    """One member, through all its rounds.

    Attributes:
        core: None while it is down.
        starts: how often it was started: what began before a kill does not end after it.
        held: states in memory, digest -> sentence.
        ready: what is in this round's claim: work of this round, after what was late in it.
        left: what of its work may count in the next claim, the oldest first.
        stood: where it stands: epoch and round.
        known: what a hostile one remembers of what others have shown it.
    """

    def __init__(self, name: str, world: World, disk: Disk) -> None:
        self.name, self.world, self.disk = name, world, disk
        self.config = Config(
            name, RUN, world.spec, self.sign, VALUES, CHUNK_VALUES, certificate=self.certificate, timing=TIMING
        )
        self.core: Core | None = None
        self.is_dead = False  # for good
        self.next_tick = NEVER
        self.starts = self.signed = 0
        self.stood = 0, disk.last.round
        self._forget()

    def _forget(self) -> None:
        """What is in memory alone."""
        self.held = dict(self.disk.state)
        self.ready: tuple[Leftover, ...] = ()
        self.left: tuple[Leftover, ...] = ()
        self.is_handing = False
        self.known: dict[str, Any] = {}

    @property
    def last(self) -> Last:
        """Where it stands; of one that is down, where it stood."""
        return self.core.state.last if self.core else self.disk.last

    # ---- starting and ending -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with nothing but what is on disk."""
        self.core = Core(self.config, self.disk.last, self.box_found(), self.world.now)
        self.stood = self.disk.last.epoch, self.disk.last.round
        self.starts += 1
        self.next_tick = NEVER
        self._forget()
        self._begin()

    def box_found(self) -> Box:
        """What a start finds of the box."""
        return self.disk.box

    def stop(self) -> None:
        self.core = None
        self.world.referee.let_go(self.in_hand())

    def in_hand(self) -> tuple[int, ...]:
        return tuple(number for work in (*self.ready, *self.left) for number in work.works)

    def sign(self, statement: Any) -> Signed[Any]:
        self.signed += 1
        digest = canonical.sha256_hex(f"{self.name}/{self.starts}/{self.signed}".encode())
        if self.world.papers is None:
            return Signed(statement, self.name, b"", digest)
        return self.world.papers.keep(Signed(statement, self.name, digest.encode(), digest))

    def certificate(self) -> str:
        return self.world.papers.certificate(self.name) if self.world.papers else ""

    # ---- the trainer -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.world.tell(WORK, self, e.Worked(self.world.tokens[self.name], 1.0))

    def hand_over(self) -> None:
        """The trainer's part of `CloseWork`: encode, and sign a claim."""
        core, world = self.core, self.world
        assert core is not None
        if core.state.own.claim is not None or self.is_handing:
            return
        self.is_handing = True
        last, tokens = core.state.last, world.tokens[self.name]
        late = (functools.reduce(Leftover.with_later, self.left),) if self.left else ()
        claim = self.sign(self.claim(last, tokens, late[0].statement(last.round + 1) if late else None))
        fresh = Leftover((world.referee.worked(self.name),), last.round + 1, last.state, tokens)
        self.ready, self.left = (*late, fresh), ()
        world.referee.claims[claim.digest] = self.in_hand()
        world.after(HAND_OVER, self, _handed_over, claim)

    def claim(self, last: Last, tokens: int, late: Late | None = None) -> Claim:
        made = {"run": RUN, "round": last.round + 1, "base": last.state, "tokens": tokens}
        return Claim(**made, flops=1, first_batch=0, batches=MANY, update=UPDATE, late=late)

    def commit(self, action: a.Commit) -> None:
        """Stand on an agreement; what is not in it may be part of the next claim."""
        referee, agreement = self.world.referee, action.agreement
        content = self.state(agreement.state)
        referee.stands_on(self.name, self.stood, agreement, content)
        self.stood = agreement.epoch, agreement.round
        before = self.in_hand()
        works = self.ready or self.left
        self.ready, self.left, self.is_handing = (), (), False
        for work in works:
            self._keep_work(work, action)
        kept = self.in_hand()
        referee.let_go(number for number in before if number not in kept)
        self.held = {**self.disk.state, agreement.state: content}
        self._begin()

    def _keep_work(self, work: Leftover, action: a.Commit) -> None:
        """Work for the next claim, unless it is too old by now; as `peer.sync.own_work` does it."""
        if action.counted:
            return
        round = action.agreement.round
        if 0 < round - work.since + 1 <= action.may_wait:
            self.left = (*self.left, replace(work, waited=True))
        elif action.is_late and (work.since, work.base) == (round, action.agreement.base):
            self.left = (replace(work, waited=False),)

    # ---- states ------------------------------------------------------------------------------------------------------

    def state(self, digest: str) -> str:
        """The state of a digest, if it is here; a sentence, or empty."""
        return self.held.get(digest, "") or self.disk.averaged.get(digest, "")

    def take(self, digest: str, content: str) -> bool:
        """Hold a state that was handed over, if it is what was asked for."""
        if not content or not self.is_asked_for(digest, content):
            return False
        self.held[digest] = content
        return True

    def is_asked_for(self, digest: str, content: str) -> bool:
        return is_digest_of(digest, content)

    def averaged(self, content: str) -> str:
        """The all-reduce is done: what led to its state is on disk before a vote for it. Returns the state's digest."""
        digest = canonical.sha256_hex(content.encode())
        self.held[digest] = content
        self.disk.averaged = {digest: content}
        return digest

    def keep(self, agreement: Agreement) -> None:
        """The head has come to the disk; if it is of another branch, or of a later round, nothing else is there."""
        if agreement.base != self.disk.last.state:
            self.disk.chain.clear()
        self.disk.last, self.disk.chain[agreement.round] = Last.of(agreement), agreement
        self.disk.state = {agreement.state: self.state(agreement.state)}

    # ---- what is asked of it -----------------------------------------------------------------------------------------

    def said(self) -> e.Said:
        """What it tells the others of itself."""
        assert self.core is not None
        state = self.core.state
        attempt = max(state.box.attempt, 0) if state.box.round == state.round else 0
        leaving, hears = state.leaving is not None, len(state.views)
        at = state.round, state.last.state, state.own.tokens, attempt, leaving
        said = e.Said(*at, step_s=1.0, hears=hears, epoch=state.last.epoch)
        if self.world.network.faults and self.world.does(self.name, "boast"):
            return replace(said, round=said.round + 2, base=hostile.made_up_head(self)[-1].state)
        if self.world.network.faults and self.world.does(self.name, "jump"):
            return replace(said, attempt=MAX_ATTEMPT)
        return said

    def chain_since(self, round: int) -> list[Agreement]:
        """The agreements of the rounds after one, up to the newest; that alone where some are not here."""
        if self.world.network.faults and self.world.does(self.name, "boast"):
            return hostile.made_up_head(self)
        chain, last = self.disk.chain, self.disk.last.round
        found = [chain[number] for number in range(round + 1, last) if number in chain]
        newest = [chain[last]] if last in chain else []
        return [*found, *newest] if len(found) == last - round - 1 else newest


def _handed_over(me: Member, claim: Signed[Claim]) -> None:
    me.is_handing = False
    me.world.step(me, e.Ready(claim))
