"""Company: who stands where this member stands, whether they may make a round, who leads it, and who is asked to it.

`Rounds` asks it many times a second; it only looks at what the members say of themselves.
"""

from __future__ import annotations

from collections.abc import Collection

from peer.screen.messages import Reason
from peer.swarm.head import Position
from peer.swarm.members import MemberBook, MemberView
from peer.swarm.node import short
from peer.swarm.standing import Standing
from protocol import canonical, succession
from protocol.beginners import Beginners
from protocol.majority import has_majority
from protocol.run_spec import RunSpec
from protocol.signed import stored_signed

IDLE_ROUNDS = 2  # in which a member did nothing: then it is asked seldom
IDLE_ASKED_EVERY = 8  # rounds
MISSED = 3  # messages in a row: who was to send them may be gone


class Company:
    """The members that work on the same round from the same base."""

    def __init__(self, me: str, spec: RunSpec, book: MemberBook, standing: Standing, position: Position) -> None:
        self._me, self._spec, self._book, self._standing, self._position = me, spec, book, standing, position
        self._idle: dict[str, int] = {}  # peer id -> rounds in a row that it was here for and did nothing in
        self.named = b""  # whose round 1 is, in the coordinator's signed word; empty: not known yet
        self.ledger_round = 0  # as the coordinator last said
        self.waiting_for = ""  # why no round is being made, in words for the owner

    def others(self) -> list[MemberView]:
        """The other members that train."""
        return [view for view in self._together() if not view.reduce_only]

    def reducers(self) -> list[MemberView]:
        """Those that only reduce for them, and have not spoilt a group a moment ago."""
        spoilt = self._standing.spoilt()
        able = [view for view in self._together() if view.reduce_only and self._book.is_admitted(view.peer_id)]
        return [view for view in able if view.peer_id not in spoilt]

    def _together(self) -> list[MemberView]:
        return self._book.together(self._position.round, self._position.head.digest)

    def here(self) -> set[str]:
        """Their peer ids, and this member's own."""
        return {self._me, *(view.peer_id for view in self.others())}

    # ---- whether a round can be made -----------------------------------------------------------------------------------

    def weights(self) -> dict[str, int]:
        """Whose promises and votes count for the round in hand: the members of the last agreement; in round 1, the beginners."""
        last = self._position.head.last
        word = stored_signed(Beginners, self.named).value if self.named and not last.round else None
        return succession.acceptors(last, word)

    def acceptors(self) -> dict[str, int]:
        """Who speaks for how much of it, as far as this member knows; an attempt is counted by what its leader knows."""
        return self._book.farewells(self._position.round).acceptors(self.weights())

    def may_lead(self, peer: str) -> bool:
        """Whether a member's votes decide, or did before it handed them over (of which not all may have heard)."""
        return peer in self.weights() or peer in self.acceptors()

    def is_enough(self) -> bool:
        """Whether a round may be made with these; if not, `waiting_for` says why."""
        acceptors, here, begun = self.acceptors(), self.here(), self._position.head.round
        least, found = (
            self._spec.sync.min_peers,
            1 + sum(view.peer_id in acceptors or view.tokens > 0 for view in self._asked()),
        )
        self.waiting_for = ""
        if found < least:
            self.waiting_for = Reason("wants-more-peers", missing=least - found, least=least)
        elif not begun and self.ledger_round:
            self.waiting_for = Reason("wants-a-state", round=self.ledger_round)
        elif not begun and not self.named:
            self.waiting_for = Reason("wants-a-beginner")
        elif not begun and not has_majority(here, acceptors):
            gone = sorted(set(acceptors) - here)
            self.waiting_for = Reason("wants-the-beginner", peer=", ".join(short(peer) for peer in gone[:3]))
        elif not has_majority(here, acceptors):
            found, count = len(here & set(acceptors)), len(acceptors)
            self.waiting_for = Reason("too-few", found=found, count=count)
        return not self.waiting_for

    def place_in_line(self) -> int | None:
        """Which leader this member is: 0 leads, 1 steps in when that one is silent, and so on; None: it never leads.

        Only those lead whose votes decide. Who hears few of the others would leave them out: it comes last.
        """
        round, others = self._position.round, self.others()
        hears = {view.peer_id: view.hears for view in others} | {self._me: len(self._book.alive())}
        most = len(others)  # whoever says that it hears more than there are does not push the others back

        def order(peer: str) -> tuple[bool, str]:
            return 2 * min(hears[peer], most) < most, canonical.sha256_hex(f"{round}/{peer}".encode())

        line = sorted(filter(self.may_lead, hears), key=order)
        return line.index(self._me) if self._me in line else None

    # ---- whom to ask -----------------------------------------------------------------------------------------------------

    def to_ask(self) -> list[MemberView]:
        """As many as fit, without those that are to be left out: first those whom the majority needs."""
        return self._asked()[: self._spec.sync.max_group - 1]

    def _asked(self) -> list[MemberView]:
        """Those whose votes decide, the heaviest first; then who has done something; then the rest, in another order each round."""
        acceptors, round = self.acceptors(), self._position.round
        without = self.to_avoid() | ((self._standing.silent() | self._resting(round)) - acceptors.keys())

        def order(view: MemberView) -> tuple[int, bool, str]:
            by_hash = canonical.sha256_hex(f"{round}/{view.peer_id}".encode())
            return -acceptors.get(view.peer_id, 0), not view.tokens, by_hash

        return sorted((view for view in self.others() if view.peer_id not in without), key=order)

    def round_made(self, members: Collection[str]) -> None:
        """A round was made by these; to be told before this member stands on it."""
        idle = (view.peer_id for view in self.others() if not view.tokens and view.peer_id not in members)
        self._idle = {peer: self._idle.get(peer, 0) + 1 for peer in idle}

    def _resting(self, round: int) -> set[str]:
        """Who has done nothing for rounds, and nothing yet in this one: it would only keep the others waiting."""
        if round % IDLE_ASKED_EVERY == 0:  # it may be slow rather than idle
            return set()
        long = {peer for peer, rounds in self._idle.items() if rounds >= IDLE_ROUNDS}
        return long - {view.peer_id for view in self.others() if view.tokens}

    def falls_silent(self) -> bool:
        """Whether somebody at work, taken for present, has missed some messages.

        Whoever asks it stops everybody's work until it is given up; until then it is better to work on.
        """
        acceptors, most_s = self.acceptors(), MISSED * self._book.interval_s
        at_work = (view.peer_id for view in self.others() if view.tokens or view.peer_id in acceptors)
        return any(self._book.silent_s(peer) > most_s for peer in at_work)

    def to_avoid(self) -> set[str]:
        """Members that spoilt a group a moment ago, if a round can be made without them."""
        spoilt = self._standing.spoilt()
        left = self.here() - spoilt | {self._me}
        enough = len(left) >= self._spec.sync.min_peers and has_majority(left, self.acceptors())
        return spoilt if enough else set()

    def unasked(self, asked: list[MemberView]) -> dict[str, str]:
        """Members that one would expect in the round and that were not asked -> why."""
        known = {view.peer_id: view for view in self._book.known() if not view.reduce_only}
        expected = (set(self._position.head.weights) | set(known)) - {view.peer_id for view in asked} - {self._me}
        return {peer: self._standing.reason(peer) or self._why_not(known.get(peer)) for peer in expected}

    def _why_not(self, view: MemberView | None) -> str:
        if view is None:
            return "not heard since the round before"
        if view.leaving:
            return "left"
        if not self._book.is_alive(view.peer_id):
            return f"not heard for {self._book.silent_s(view.peer_id):.0f} s"
        if view.base != self._position.head.digest:
            return f"at round {view.round}" if view.round != self._position.round else "on another branch"
        if view.peer_id in self._standing.silent():
            return "did not answer the last times that it was asked"
        if view.peer_id in self._resting(self._position.round):
            return "has done nothing for rounds"
        full = len(self.others()) >= self._spec.sync.max_group
        return "the group is full" if full else "not there yet when the others were asked"

    # ---- lines -----------------------------------------------------------------------------------------------------------

    def up_bytes_s(self) -> float:
        """This member's uplink, as far as it was used towards all others of the last group at the same time; 0: not measured."""
        weights = self._position.head.weights
        return sum(view.from_me_bytes_s for view in self._book.known() if view.peer_id in weights)

    def lines(self) -> dict[str, float]:
        """Everybody's uplink, bytes/s."""
        return {view.peer_id: view.up_bytes_s for view in self._book.known()} | {self._me: self.up_bytes_s()}
