"""Several cores in memory, at one table: they talk, work and average by a clock that goes from event to event.

    table = Table("abc")                          # three that have made round 1 together
    table["b"].is_mute = True                     # what goes wrong
    table.until(lambda: table["a"].round == 3)

`tests/sim` plays ten thousand rounds of storms by the same core; here one thing goes wrong, and what comes of it is
seen.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from peer.round import actions as a
from peer.round import events as e
from peer.round import turns, views
from peer.round.box import Box
from peer.round.core import Core
from peer.round.group import Group, Member
from peer.round.state import Averaging, Timing
from protocol import canonical
from protocol.agreement import Agreement
from protocol.succession import Last
from tests.core_kit import after_round_1, claim_of, make_core, saved, spec_of

MESSAGE_S, AVERAGE_S, SILENCE_S, FETCH_S = 0.01, 0.1, 2.0, 0.05
TIMING = Timing()


class Seat:
    """One member at the table, with a trainer that hands over what it has when it is told to, and a disk.

    What goes wrong with it is set by the test:
        averages    what it gets from an all-reduce, given what it should get
        is_mute     it sends no part of its update
        work_s, hand_over_s, tokens     its trainer's
        saves, keeps    its disk; may raise OSError
        shows       the agreements that it shows of the rounds since one; None: it never answers
        says        what it tells another of itself, given what is true
        bends       its actions, as it does them; None: not at all
    """

    def __init__(self, table: Table, name: str, last: Last) -> None:
        self.table, self.name = table, name
        self.core: Core | None = None
        self.last, self.box = last, Box()  # on disk
        self.tokens, self.work_s, self.hand_over_s, self.is_mute, self.trains = 100, 0.2, 0.0, False, True
        self.averages: Callable[[e.Averaged], Any] = lambda found: found
        self.saves: Callable[[Box], None] = lambda box: None
        self.keeps: Callable[[Agreement], None] = lambda agreement: None
        self.shows: Callable[[int], list[Agreement] | None] = self.chain_since
        self.says: Callable[[Seat, e.Said], e.Said] = lambda other, true: true
        self.bends: Callable[[Any], Any | None] = lambda action: action
        self.held: set[str] = {last.state}
        self.commits: list[a.Commit] = []
        self.aborted: list[str] = []
        self.done: list[Any] = []  # all that it did
        self.handed_over: list[str] = []  # bases of its claims
        self._ticks_at = float("inf")
        self.starts = 0

    @property
    def state(self) -> Any:
        assert self.core is not None, f"{self.name} is not there"
        return self.core.state

    @property
    def round(self) -> int:
        """The last that it stands on."""
        return self.core.state.last.round if self.core else self.last.round

    def agreed(self, round: int) -> Agreement:
        return next(done.agreement for done in self.commits if done.agreement.round == round)

    @property
    def waiting_for(self) -> str:
        waiting = turns.waiting_for(self.state, self.table.now)
        return waiting.key if waiting else ""

    def chain_since(self, round: int) -> list[Agreement] | None:
        return [done.agreement for done in self.commits if done.agreement.round > round]

    # ---- starting and ending ---------------------------------------------------------------------------------------

    def start(self, **config: Any) -> None:
        """From what is on its disk."""
        table = self.table
        self.core = make_core(self.name, table.spec, self.last, self.box, table.now, timing=table.timing, **config)
        self.held, self.starts, self._ticks_at = {self.last.state}, self.starts + 1, float("inf")
        self._handed = ""  # base
        self._begin()
        table.after(0, self.gossip, self)

    def kill(self) -> None:
        self.core = None

    def leave(self) -> None:
        self.step(e.Leave(hands_over=True))

    # ---- its trainer ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.trains and not self.state.config.reduce_only:
            self.table.after(self.work_s, lambda: self.step(e.Worked(self.tokens, self.work_s)), self)

    def _hand_over(self) -> None:
        state = self.state
        if not self.trains or self._handed == state.last.state:
            return
        self._handed = state.last.state
        self.handed_over.append(self._handed)
        claim = claim_of(self.name, self.table.spec, state.round, state.last.state, self.tokens)
        self.table.after(self.hand_over_s, lambda: self.step(e.Ready(claim)), self)

    # ---- stepping ----------------------------------------------------------------------------------------------------

    def step(self, event: e.Event) -> None:
        """One event, and all that comes of it at once."""
        pending = deque([event])
        while pending and self.core is not None:
            for action in self.core.step(pending.popleft(), self.table.now):
                if isinstance(action, a.SaveBox):
                    done = saved(self.saves, action.box)
                    self.box = action.box if isinstance(done, e.BoxSaved) else self.box
                    pending.appendleft(done)
                elif (bent := self.bends(action)) is not None:
                    self.done.append(bent)
                    self._do(bent)
        if self.core is not None and self.state.wake_at < self._ticks_at:
            self._ticks_at = max(self.state.wake_at, self.table.now)
            self.table.after(self._ticks_at - self.table.now, self._tick, self)

    def _tick(self) -> None:
        self._ticks_at = float("inf")
        self.step(e.Tick())

    def _do(self, action: Any) -> None:
        table = self.table
        match action:
            case a.CloseWork():
                self._hand_over()
            case a.Aborted(_, _, why):
                self.aborted.append(why)
            case a.AllReduce(group):
                if not self.is_mute:
                    table.joined.setdefault((group.digest, group.attempt), set()).add(self.name)
                table.after(AVERAGE_S, lambda: self._average(group, table.now), self)
            case a.Fetch(state, sources):
                table.after(FETCH_S, lambda: self._fetched(state, sources), self)
            case a.Commit():
                self._commit(action)
            case a.TellEveryone():
                self.tell()
            case a.Gone():
                table.after(MESSAGE_S, self.kill, self)
            case a.Stage() | a.StopAllReduce():
                pass
            case _:
                table.carry(self, action)

    def _average(self, group: Group, since: float) -> None:
        phase = self.state.phase
        if not isinstance(phase, Averaging) or phase.group is not group:
            return
        missing = sorted(set(group.by_peer) - self.table.joined.get((group.digest, group.attempt), set()))
        if not missing:
            digest = canonical.sha256_hex(f"{group.digest} on {group.base}".encode())
            found = self.averages(e.Averaged(group.digest, group.attempt, digest, AVERAGE_S))
            if isinstance(found, e.Averaged):
                self.held.add(found.state)
            self.step(found)
        elif self.table.now - since > SILENCE_S:
            self.step(e.NotAveraged(group.digest, group.attempt, f"no data from {missing[0]} for 2 s", missing[0]))
        else:
            self.table.after(AVERAGE_S, lambda: self._average(group, since), self)

    def _fetched(self, state: str, sources: Sequence[str]) -> None:
        seats = [self.table[name] for name in sources if self.table.reaches(self.name, name)]
        if state in self.held or any(state in seat.held for seat in seats):
            self.held.add(state)
            self.step(e.Fetched(state))
        else:
            self.step(e.NotFetched(state, "nobody could give it"))

    def _commit(self, action: a.Commit) -> None:
        agreement = action.agreement
        assert self.table.states.setdefault(agreement.round, agreement.state) == agreement.state, "two states"
        self.commits.append(action)
        self.held = {agreement.state, agreement.base}
        self._begin()
        self.table.after(MESSAGE_S, lambda: self._keep(agreement), self)

    def _keep(self, agreement: Agreement) -> None:
        why = ""
        try:
            self.keeps(agreement)
            self.last = Last.of(agreement)
        except OSError as error:
            why = str(error)
        self.step(e.Kept(agreement.round, why))

    # ---- gossip ------------------------------------------------------------------------------------------------------

    def gossip(self) -> None:
        self.tell()
        self.table.after(self.state.gossip_s, self.gossip, self)

    def tell(self) -> None:
        true, farewells = views.own_said(self.state, self.table.now), views.farewells_to_tell(self.state)
        for other in self.table.seats.values():
            if self.table.reaches(self.name, other.name):
                heard = e.Heard(self.name, self.says(other, true), farewells)
                self.table.after(MESSAGE_S, lambda other=other, heard=heard: other.step(heard), other)  # type: ignore[misc]


class Table:
    """Some members in one run, and the clock that they share.

    Args:
        names: letters; they have made round 1 together.
        newcomers: who was not in it.
        weights: in round 1; 100 each.
    """

    def __init__(
        self,
        names: str,
        newcomers: str = "",
        *,
        weights: dict[str, int] | None = None,
        timing: Timing = TIMING,
        start: str | None = None,
        **sync: Any,
    ) -> None:
        self.now, self.spec, self.timing = 0.0, spec_of(**sync), timing
        self.states: dict[int, str] = {}  # round -> digest that all must stand on
        self.joined: dict[tuple[str, int], set[str]] = {}
        self.cuts: set[frozenset[str]] = set()  # pairs between which nothing comes through
        self.loses: Callable[[str, str, Any], bool] = lambda sender, to, action: False
        self._queue: list[tuple[float, int, Callable[[], None], Seat, int]] = []
        self._order = itertools.count()
        last = after_round_1(weights or dict.fromkeys(names, 100))
        self.seats = {name: Seat(self, name, last) for name in names + newcomers}
        for name in names + newcomers if start is None else start:
            self.seats[name].start()

    def __getitem__(self, name: str) -> Seat:
        return self.seats[name]

    def cut(self, one: str, others: str) -> None:
        self.cuts |= {frozenset((one, other)) for other in others}

    def reaches(self, sender: str, to: str) -> bool:
        there = to in self.seats and self.seats[to].core is not None
        return there and sender != to and frozenset((sender, to)) not in self.cuts

    # ---- time --------------------------------------------------------------------------------------------------------

    def after(self, seconds: float, do: Callable[[], None], seat: Seat) -> None:
        """Something happens to a member, unless it is gone by then, or has started again."""
        heappush(self._queue, (self.now + seconds, next(self._order), do, seat, seat.starts))

    def until(self, condition: Callable[[], Any], within_s: float = 60.0) -> None:
        """Let time pass until something is so; it must be so in time."""
        end = self.now + within_s
        while not condition():
            assert self._queue[0][0] <= end, f"not so after {within_s:.0f} s: {self.story()}"
            self._next()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self._next()
        self.now = end

    def _next(self) -> None:
        self.now, _, do, seat, starts = heappop(self._queue)
        if seat.core is not None and seat.starts == starts:
            do()

    def agree(self, round: int, names: str = "", within_s: float = 60.0) -> None:
        """Until all that are there, or these, stand on a round."""
        wanted = [self[name] for name in names] or [seat for seat in self.seats.values() if seat.core is not None]
        self.until(lambda: all(seat.round >= round for seat in wanted), within_s)

    def story(self) -> str:
        there = [seat for seat in self.seats.values() if seat.core is not None]
        return "; ".join(f"{seat.name}: round {seat.round}, {seat.state.phase}, {seat.aborted[-3:]}" for seat in there)

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _send(self, sender: Seat, to: str, action: Any, event: Any, unreached: Any = None) -> None:
        if self.reaches(sender.name, to) and not self.loses(sender.name, to, action):
            other = self.seats[to]
            self.after(MESSAGE_S, lambda: other.step(event), other)
        elif unreached is not None:
            self.after(self.timing.call_s, lambda: sender.step(unreached), sender)

    def carry(self, me: Seat, action: Any) -> None:
        """Take a member's message to where it goes."""
        name = me.name
        match action:
            case a.Propose(to, round, base, attempt, timeout_s, asked):
                for peer in to:
                    call = ("propose", name, attempt)
                    event = e.Proposed(call, name, round, base, attempt, timeout_s, asked)
                    self._send(me, peer, action, event, e.Declined(peer, attempt, "cannot be reached"))
            case a.Join((_, leader, attempt), promise, vote, group, farewells, unheard):
                shown = ((vote, group),) if vote and group else ()
                member = Member(name, me.state.own.claim, "", me.state.config.reachable)
                self._send(me, leader, action, e.Joined(name, attempt, member, promise, shown, farewells, unheard))
            case a.Decline((kind, leader, attempt), why):
                made = e.Declined if kind == "propose" else e.GroupTaken
                self._send(me, leader, action, made(name, attempt, why))
            case a.SendGroup(to, group):
                for peer in to:
                    lost = e.GroupTaken(peer, group.attempt, "cannot be reached", reached=False)
                    self._send(me, peer, action, e.Grouped(("group", name, group.attempt), name, group), lost)
            case a.Accept((_, leader, attempt)):
                self._send(me, leader, action, e.GroupTaken(name, attempt))
            case a.SendVote(to, vote, lacks):
                for peer in to:
                    self._send(me, peer, action, e.Votes(name, vote, (), ("vote", name, 0), lacks))
            case a.ShowVotes((_, asker, _), own, others):
                self._send(me, asker, action, e.Votes(name, own, others))
            case a.SendAbort(to, group, _, attempt, why, culprit):
                for peer in to:
                    self._send(me, peer, action, e.GaveUp(name, group, attempt, why, culprit))
            case a.AskHead(to, since, patience_s):
                chain = self.seats[to].shows(since) if self.reaches(name, to) else None
                shown: Any = e.HeadNotShown(to, "no answer", answered=False)
                if chain is not None:
                    shown = e.HeadShown(to, since, chain)
                self.after(FETCH_S if chain is not None else patience_s, lambda: me.step(shown), me)
            case _:
                raise AssertionError(f"nobody does {action}")
