"""One simulated member: `peer.round.core` as it ships, with a disk and a trainer that are made up.

A hostile or hasty member is the same core; what it does wrong is done to the events that it gets and the actions that it
gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peer.round import actions as a
from peer.round import events as e
from peer.round import lead
from peer.round.box import Box
from peer.round.core import Core
from peer.round.group import Group
from peer.round.state import Config, Lead, Timing, Work
from protocol import canonical
from protocol.agreement import Agreement
from protocol.signed import Signed
from protocol.statements import Claim, Late, UpdateDigest
from protocol.succession import Last
from tests.sim.spec import RUN

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
WORK, HAND_OVER, KEEP = 2, 0.5, 0.5  # ticks


@dataclass
class Disk:
    """What is left after a kill."""

    last: Last
    state: str
    box: Box = field(default_factory=Box)
    averaged: set[str] = field(default_factory=set)  # states that what is on disk leads to
    chain: dict[int, Agreement] = field(default_factory=dict)


class Member:
    """One member, through all its rounds."""

    def __init__(self, name: str, world: World, last: Last) -> None:
        self.name, self.world = name, world
        self.disk = Disk(last, last.state)
        self.core: Core | None = None
        self.next_tick = float("inf")
        self.starts = 0
        self.signed = 0
        self.work: tuple[int, ...] = ()  # works in this round's claim
        self.late: tuple[Late | None, tuple[int, ...]] = (None, ())  # work that may count in the next claim

    @property
    def up(self) -> bool:
        return self.core is not None

    @property
    def last(self) -> Last:
        """Where it stands; of one that is down, where it stood."""
        return self.core.state.last if self.core else self.disk.last

    # ---- starting and ending -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with nothing but what is on disk."""
        world = self.world
        config = Config(
            self.name,
            RUN,
            world.spec,
            self.sign,
            values=world.values,
            chunk_values=world.chunk_values,
            timing=TIMING,
        )
        self.core = Core(config, self.disk.last, world.bugs_box(self.disk.box), world.now)
        self.starts += 1
        self.next_tick = float("inf")
        self.held = {self.disk.state}  # states in memory
        self.late: tuple[Late | None, tuple[int, ...]] = (None, ())  # work that may count in the next claim
        self.work: tuple[int, ...] = ()  # works in hand, in this round's claim
        self.handing = False
        self.known_groups: dict[str, Group] = {}  # what a usurper was shown
        self._begin()

    def stop(self) -> None:
        self.core = None
        self.world.let_go(self.in_hand())

    def in_hand(self) -> tuple[int, ...]:
        return (*self.work, *self.late[1])

    def sign(self, statement: Any) -> Signed[Any]:
        self.signed += 1
        return Signed(
            statement, self.name, b"", canonical.sha256_hex(f"{self.name}/{self.starts}/{self.signed}".encode())
        )

    # ---- the trainer ---------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.world.after(WORK, self, e.Worked(self.world.tokens[self.name], 1.0))

    def hand_over(self) -> None:
        """The trainer's part of `CloseWork`: encode, and sign a claim."""
        core, world = self.core, self.world
        assert core is not None
        if core.state.own.claim is not None or self.handing:
            return
        self.handing = True
        state, (late, works) = core.state, self.late
        number = world.worked(self.name)
        made = Claim(
            run=RUN,
            round=state.round,
            base=state.last.state,
            tokens=world.tokens[self.name],
            flops=1,
            first_batch=0,
            batches=10**6,
            update=self.update(),
            late=late,
        )
        claim = self.sign(made)
        self.work, self.late = (number, *works), (None, ())
        world.claims[claim.digest] = self.work
        world.after(HAND_OVER, self, e.Ready(claim))

    def update(self) -> UpdateDigest:
        world = self.world
        return UpdateDigest(
            root="0" * 64, values=world.values, chunk_values=world.chunk_values, codec=world.spec.sync.wire
        )

    def commit(self, action: a.Commit) -> None:
        """Stand on an agreement; what is not in it may be part of the next claim."""
        world, agreement = self.world, action.agreement
        world.stands_on(self, agreement)
        before, work = self.in_hand(), self.work
        self.handing = False
        self.work, self.late = (), (None, ())
        tokens = sum(world.worth[number] for number in work)
        if work and not action.counted:
            base = agreement.base
            if action.may_wait >= 1 and action.rounds == 1:
                late = Late(base=base, tokens=tokens, first_batch=0, batches=10**6, waited=1)
                self.late = (late, work)
            elif world.is_late(action):
                self.late = (Late(base=base, tokens=tokens, first_batch=0, batches=10**6), work)
        kept = self.late[1]
        world.let_go(tuple(number for number in before if number not in kept))
        self.held = {state for state in self.held if state == self.disk.state} | {agreement.state}
        world.after(KEEP, self, _Kept(action))
        self._begin()

    def kept(self, action: a.Commit) -> e.Kept:
        """The head has come to the disk."""
        agreement = action.agreement
        self.disk.last, self.disk.state = Last.of(agreement), agreement.state
        self.disk.chain[agreement.round] = agreement
        return e.Kept(agreement.round)

    # ---- what is asked of it -------------------------------------------------------------------------------------------

    def said(self) -> e.Said:
        """What it tells the others of itself."""
        assert self.core is not None
        state, world = self.core.state, self.world
        round, base = state.round, state.last.state
        if world.does(self.name, "boast"):
            round, base = round + 2, world.lie(self)[-1].state
        attempt = max(state.box.attempt, 0) if state.box.round == state.round else 0
        leaving = state.leaving is not None
        return e.Said(round, base, state.own.tokens, attempt, leaving, step_s=1.0, hears=len(state.views))

    def chain_since(self, round: int) -> list[Agreement]:
        if self.world.does(self.name, "boast"):
            return self.world.lie(self)
        assert self.core is not None
        return [
            self.disk.chain[number]
            for number in range(round + 1, self.disk.last.round + 1)
            if number in self.disk.chain
        ]

    # ---- what a hostile one makes of it ----------------------------------------------------------------------------------

    def bend(self, event: Any) -> Any | None:
        """The event as this member takes it; None: it passes it over."""
        core, world = self.core, self.world
        assert core is not None
        state = core.state
        if isinstance(event, e.Ready):
            self.handing = False
        if not world.faults:
            return event
        if isinstance(event, e.Heard) and event.said.round > state.round and world.is_in("blind", self.name):
            return e.SignOfLife(event.by)
        if isinstance(event, e.Proposed) and state.is_grouped and world.is_in("hasty", self.name):
            state.phase = Work()
        if isinstance(event, e.Averaged) and world.does(self.name, "mislead"):
            lie = world.content(f"{event.state}, says {self.name}")
            self.held.add(lie)
            return replace(event, state=lie)
        if isinstance(state.phase, Lead) and world.does(self.name, "usurp"):
            self._pass_over(state.phase)
        return event

    def _pass_over(self, phase: Lead) -> None:
        """A usurper cannot change what others have signed: it leaves it out, or behaves as if it did not see it."""
        drops = self.world.draw.random() < 0.5
        for peer, said in list(phase.cast.items()):
            self.known_groups |= {group.digest: group for group in said.values()}
            if said and drops:
                phase.left_out[peer] = "passed over"
                del phase.cast[peer], phase.members[peer], phase.promises[peer]
            else:
                phase.cast[peer] = {}

    def bent(self, action: Any) -> Any:
        """An action as this member does it."""
        if isinstance(action, a.SendGroup) and self.world.does(self.name, "usurp"):
            shown: Mapping[str, Group] = {item.digest: item for item in action.group.voted}
            return a.SendGroup(action.to, replace(action.group, voted=tuple({**self.known_groups, **shown}.values())))
        return action

    def lead(self, asked: list[str]) -> list[Any]:
        """Lead out of turn."""
        core = self.core
        assert core is not None
        state = core.state
        busy = state.is_grouped or state.saving is not None or state.leaving is not None
        if busy or not isinstance(state.phase, Work | Lead) or state.own.tokens == 0:
            return []
        there = [state.views[name] for name in asked if name in state.views]
        return lead.propose(state, there, self.world.now)


@dataclass
class _Kept:
    action: a.Commit
