"""Leaving: a group under way is finished, the weight handed over, and the others are told."""

from __future__ import annotations

from peer.round import box, views
from peer.round.actions import Action, CloseWork, Decline, Gone, TellEveryone
from peer.round.attempt import abort, save, wake
from peer.round.events import Leave
from peer.round.state import Bound, Keep, Leaving, Left, State, Work
from protocol.statements import Farewell


def on_leave(state: State, event: Leave, now: float) -> list[Action]:
    """Make no round any more, once the group in hand is finished."""
    if isinstance(state.phase, Left):
        return [Gone()]
    rounds = [state.round, state.round + 1] if event.hands_over else []
    hands_over = event.hands_over and not state.config.reduce_only  # nobody waits for the word of who only reduces
    known = state.leaving
    until = known.until if known is not None else now + state.config.timing.leave_s
    state.leaving = Leaving(until, event.hands_over, event.holders, rounds if hands_over else [])
    return []


def go_on(state: State, now: float) -> list[Action]:
    """Once nothing is under way any more: say farewell for the round in hand and the next, tell all, and be gone."""
    leaving, phase = state.leaving, state.phase
    assert leaving is not None
    found: list[Action] = []
    if state.is_grouped or isinstance(phase, Keep):
        if now < leaving.until:
            wake(state, leaving.until)
            return []
        if state.is_grouped:
            found += abort(state, "I am leaving", now)
    elif isinstance(phase, Bound) and phase.call is not None:
        found.append(Decline(phase.call, "I am leaving"))
    if not isinstance(state.phase, Work):
        state.phase = Work()
    while leaving.rounds:
        saved = _farewell(state, leaving.rounds.pop(0), now)
        if saved is not None:
            return [*found, *save(state, saved, None, [], [])]
    if leaving.told:
        return found
    leaving.told = True
    views.take_farewells(state, state.box.farewells.values())
    found += [CloseWork(), TellEveryone()]
    if leaving.is_final:
        state.phase = Left()
        found.append(Gone())
    return found


def _farewell(state: State, round: int, now: float) -> box.Box | None:
    """The box with this member's farewell to a round; None: there is none to be said."""
    successor = _successor(state, now)
    if not successor:
        return None
    attempt = state.box.next_attempt(round)
    said = Farewell(run=state.config.run, round=round, successor=successor, attempt=attempt, epoch=state.epoch)
    try:
        return state.box.say_farewell(state.config.sign(said))
    except box.AlreadyPromised:  # it has voted: it is waited for
        return None


def _successor(state: State, now: float) -> str:
    """Who speaks for this member's weight from now on, so that the others need not wait for it."""
    leaving, here, weights = state.leaving, state.last.state, state.last.weights
    assert leaving is not None
    staying = [view for view in views.alive(state, now) if not view.said.leaving and not view.said.reduce_only]
    if state.last.round:  # a stranger that only says that it stands here would have this weight for good
        staying = [view for view in staying if view.peer in weights or view.peer in leaving.holders]
    if not staying:
        return ""
    chosen = max(staying, key=lambda view: (view.said.base == here, weights.get(view.peer, 0), view.peer))
    return chosen.peer
