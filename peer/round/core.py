"""The core: one event in, a list of actions out. It decides all that a member does in the rounds, and does none of it.

core = Core(config, last, box, now)
for action in core.step(event, now):          # plain data; results come back as events
    ...
core.step(Tick(), core.state.wake_at)         # when nothing else has happened until then

Work ──▶ Lead ───────────┐        claims and promises are gathered; the group follows from them
  │ ───▶ Bound ──────────┤        a promise to another leader; its group is checked
  │                      ▼
  │                  Averaging / Fetching ──▶ Voting ──▶ Keep ──▶ Work, in the next round
  └─ a later head that follows from this one's ────────▲
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peer.round import attempt, bound, follow, lead, leave, tally, views, word
from peer.round import events as e
from peer.round.actions import Aborted, Action, Decline, Stage
from peer.round.attempt import FULL_DISK, NOTHING, abort, save, wake
from peer.round.box import Box
from peer.round.events import Event
from peer.round.length import RoundLength
from peer.round.state import NEVER, Averaging, Bound, Config, Fetching, Keep, Lead, Left, State, Voting, Work
from protocol.succession import Last

MOST_STEPS = 10  # phases that one event may lead through


class Core:
    """One member's side of all rounds."""

    def __init__(self, config: Config, last: Last, box: Box, now: float) -> None:
        sync = config.spec.sync
        length = RoundLength(overlap=sync.overlap, fragments=sync.fragments)
        self.state = State(config, last, box, now, length=length, round_started=now)
        self.state.gossip_s = config.timing.gossip_s
        self.state.box = box = box.standing_on(last.epoch, last.round)
        ballot = box.voted(self.state.round) if box.epoch == last.epoch else None
        if ballot is not None and box.group is not None:
            self.state.votes[config.me] = attempt.sign_vote(self.state, ballot)
        views.take_farewells(self.state, box.farewells.values())

    def step(self, event: Event, now: float) -> list[Action]:
        """Take one event.

        Args:
            now: seconds, of a clock that never goes back.
        """
        state = self.state
        state.now = now
        if isinstance(state.phase, Left):
            return _after_the_end(event)
        actions: list[Action] = _HANDLERS[type(event)](state, event, now)
        if actions is NOTHING or state.saving is not None:
            return actions
        return _settled(state, actions, now)


def _settled(state: State, actions: list[Action], now: float) -> list[Action]:
    """Do what can be done by now, and set when to look again."""
    state.wake_at = state.look_at = NEVER
    for _ in range(MOST_STEPS):
        phase = state.phase
        if state.leaving is not None:
            actions = actions + leave.go_on(state, now)
        if state.saving is None and state.phase is phase:
            actions = actions + _GO_ON[type(phase)](state, now)
        if state.saving is not None:
            return actions
        if state.phase is phase:
            break
    return actions + follow.look(state, now)


def _after_the_end(event: Event) -> list[Action]:
    call = getattr(event, "call", None)
    return [Decline(call, "I am leaving")] if call is not None and not isinstance(event, e.Votes) else []


# ---- events that are only noted --------------------------------------------------------------------------------------


def _on_heard(state: State, event: e.Heard, now: float) -> list[Action]:
    matters = views.note(state, event.by, event.said, now)
    if event.farewells:
        views.take_farewells(state, event.farewells)
        matters = True
    if matters:
        _look_soon(state, now)
    return NOTHING


def _look_soon(state: State, now: float) -> None:
    """What was heard may change what is to be done: but first hear what else comes."""
    if state.look_at == NEVER:
        state.look_at = now + state.config.timing.look_s
        wake(state, state.look_at)


def _on_sign_of_life(state: State, event: e.SignOfLife, now: float) -> list[Action]:
    views.heard(state, event.by, now)
    return NOTHING


def _on_lost(state: State, event: e.Lost, now: float) -> list[Action]:
    views.lost(state, event.by, event.since, now)
    _look_soon(state, now)
    return NOTHING


def _on_expelled(state: State, event: e.Expelled, now: float) -> list[Action]:
    state.views = {peer: view for peer, view in state.views.items() if peer not in event.peers}
    _look_soon(state, now)
    return NOTHING


def _on_answered(state: State, event: e.Answered, now: float) -> list[Action]:
    views.answered(state, event.by, event.seconds, now)
    return NOTHING


# ---- the disk, the trainer, the coordinator --------------------------------------------------------------------------


def _on_box_saved(state: State, event: e.BoxSaved, now: float) -> list[Action]:
    saving, state.saving = state.saving, None
    assert saving is not None
    state.box = saving.box
    if saving.phase is not None:
        state.phase = saving.phase
    if isinstance(saving.phase, Lead | Bound):
        state.own.is_called = True
    if isinstance(saving.phase, Voting):
        state.votes[state.config.me] = saving.phase.vote
    return saving.actions


def _on_box_not_saved(state: State, event: e.BoxNotSaved, now: float) -> list[Action]:
    saving, state.saving = state.saving, None
    assert saving is not None
    if saving.phase is None:  # a farewell, and its author is waited for; or the coordinator's word, to be heard again
        return saving.unless
    why = f"cannot keep a promise or a vote: {event.why}"
    return [*abort(state, why, now, told=FULL_DISK), *saving.unless]


def _on_kept(state: State, event: e.Kept, now: float) -> list[Action]:
    if not isinstance(state.phase, Keep) or state.phase.round != event.round:
        return []
    state.phase = Work()
    found: list[Action] = [Stage(event.round, "kept")]
    if event.why:
        found = [Aborted(event.round, state.box.attempt, f"cannot keep round {event.round}: {event.why}")]
    parked, state.parked = state.parked, None
    return found + (bound.on_proposed(state, parked, now) if parked is not None else [])


def _on_fetched(state: State, event: e.Fetched, now: float) -> list[Action]:
    if follow.is_searched(state, event.state):
        return follow.on_fetched(state, event, now)
    if isinstance(state.phase, Fetching) and state.phase.state == event.state:
        return tally.on_fetched(state, event, now)
    return []


def _on_not_fetched(state: State, event: e.NotFetched, now: float) -> list[Action]:
    if follow.is_searched(state, event.state):
        return follow.on_not_fetched(state, event, now)
    if isinstance(state.phase, Fetching) and state.phase.state == event.state:
        return tally.on_not_fetched(state, event, now)
    return []


def _on_worked(state: State, event: e.Worked, now: float) -> list[Action]:
    if state.own.claim is None:
        state.own.tokens = event.tokens
    state.own.step_s = event.step_s
    return []


def _on_ready(state: State, event: e.Ready, now: float) -> list[Action]:
    made = event.claim.value
    if (made.round, made.base) == (state.round, state.last.state) and state.own.claim is None:
        state.own.claim, state.own.since, state.own.tokens = event.claim, now, made.tokens
    return []


def _on_coordinator_said(state: State, event: e.CoordinatorSaid, now: float) -> list[Action]:
    state.ledger_round = event.ledger_round
    epoch = state.box.epoch
    actions = word.take(state, event.word, now)
    return actions if state.box.epoch == epoch else [*actions, *save(state, state.box, None, [], [])]


_HANDLERS: dict[type, Callable[[State, Any, float], list[Action]]] = {
    e.Heard: _on_heard,
    e.SignOfLife: _on_sign_of_life,
    e.Lost: _on_lost,
    e.Answered: _on_answered,
    e.Expelled: _on_expelled,
    e.Proposed: bound.on_proposed,
    e.Grouped: bound.on_grouped,
    e.Joined: lead.on_joined,
    e.Declined: lead.on_declined,
    e.GroupTaken: lead.on_group_taken,
    e.Averaged: tally.on_averaged,
    e.NotAveraged: tally.on_not_averaged,
    e.Votes: tally.on_votes,
    e.GaveUp: tally.on_gave_up,
    e.HeadShown: follow.on_head_shown,
    e.HeadNotShown: follow.on_head_not_shown,
    e.Fetched: _on_fetched,
    e.NotFetched: _on_not_fetched,
    e.BoxSaved: _on_box_saved,
    e.BoxNotSaved: _on_box_not_saved,
    e.Kept: _on_kept,
    e.Worked: _on_worked,
    e.Ready: _on_ready,
    e.Leave: leave.on_leave,
    e.CoordinatorSaid: _on_coordinator_said,
    e.Anchored: follow.on_anchored,
    e.Woken: follow.on_woken,
    e.Tick: lambda state, event, now: [],
}
_GO_ON: dict[type, Callable[[State, float], list[Action]]] = {
    Work: lead.watch,
    Lead: lead.go_on,
    Bound: bound.go_on,
    Averaging: lambda state, now: [],
    Fetching: lambda state, now: [],
    Voting: tally.go_on,
    Keep: lambda state, now: [],
    Left: lambda state, now: [],
}
