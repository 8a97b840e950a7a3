"""Views: who is there, each by what it last said of itself. Nobody is counted on of whom nothing was heard for long."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from peer.round.events import Said
from peer.round.farewells import MAX_FAREWELLS, Farewells
from peer.round.state import State, View
from protocol.signed import Signed
from protocol.statements import Farewell

PEERS_AT_FULL_PACE = 8  # of so many it takes 0.5 Mbit/s of each uplink; of more no more, for they report less often
CALLS_MANY = 4.0  # times as long as an answer took lately
MISSED = 3  # messages in a row: who was to send them may be gone


def note(state: State, peer: str, said: Said, now: float) -> bool:
    """Keep what an admitted member says; returns whether that can change what is to be done."""
    view = state.views.get(peer)
    if view is None:
        timing = state.config.timing
        state.views[peer] = View(peer, said, now, timing.call_s, timing.alive_s)
        _set_pace(state, now)
        return True
    before, was_gone = view.said, now - view.heard >= view.alive_s
    view.said, view.heard = said, now
    return (
        was_gone
        or before.tokens != said.tokens
        or before.round != said.round
        or before.base != said.base
        or before.leaving != said.leaving
    )


def heard(state: State, peer: str, now: float) -> None:
    """Something came from this member, whatever it was."""
    if peer in state.views:
        state.views[peer].heard = now


def lost(state: State, peer: str, since: float, now: float) -> None:
    """A call to this member failed, and nothing else was heard of it since: do not count on it."""
    view = state.views.get(peer)
    if view is not None and view.heard < since:
        view.heard = min(view.heard, now - view.alive_s)


def answered(state: State, peer: str, seconds: float | None, now: float) -> None:
    """An answer took so long, or did not come in time (None)."""
    view = state.views.get(peer)
    if view is not None:
        timing = state.config.timing
        usual = 0.9 * view.patience_s if seconds is not None else 1.5 * view.patience_s
        view.patience_s = min(max(usual, CALLS_MANY * (seconds or 0.0), timing.call_s), timing.call_most_s)
        _set_pace(state, now)


def _set_pace(state: State, now: float) -> None:
    """Forget who is long gone; the more members, and the slower they are, the less often one reports to each."""
    timing = state.config.timing
    if any(now - view.heard >= timing.forget_s for view in state.views.values()):
        state.views = {peer: view for peer, view in state.views.items() if now - view.heard < timing.forget_s}
    slowness = statistics.median([view.patience_s for view in state.views.values()] or [timing.call_s]) / timing.call_s
    state.gossip_s = timing.gossip_s * max(len(state.views) / PEERS_AT_FULL_PACE, slowness)
    for view in state.views.values():
        view.alive_s = _alive_s(state, view)


def patience_s(state: State, peer: str) -> float:
    """How long to wait for a member's answer."""
    view = state.views.get(peer)
    return view.patience_s if view else state.config.timing.call_s


def _alive_s(state: State, view: View) -> float:
    timing = state.config.timing
    slow_s = view.patience_s if view.patience_s > timing.call_s else 0.0
    return max(timing.alive_s, 4 * state.gossip_s, slow_s)


def silent_s(state: State, peer: str, now: float) -> float:
    """How long nothing has been heard of a member; infinite for one never heard of."""
    view = state.views.get(peer)
    return now - view.heard if view else float("inf")


def is_alive(state: State, peer: str, now: float) -> bool:
    view = state.views.get(peer)
    return view is not None and now - view.heard < view.alive_s


def alive(state: State, now: float) -> list[View]:
    return [view for view in state.views.values() if now - view.heard < view.alive_s]


def together(state: State, now: float) -> list[View]:
    """Live members that work on the round in hand from this member's base, and stay."""
    round, base = state.round, state.last.state
    return [
        view
        for view in state.views.values()
        if (said := view.said).round == round
        and said.base == base
        and not said.leaving
        and now - view.heard < view.alive_s
    ]


def ahead(state: State, now: float) -> list[View]:
    """Live members that say they stand further than this one: in a later epoch or round; the furthest first."""
    epoch, round = state.last.epoch, state.round
    found = [
        view
        for view in state.views.values()
        if ((said := view.said).round > round or said.epoch > epoch)
        and (said.epoch, said.round) > (epoch, round)
        and now - view.heard < view.alive_s
    ]
    return sorted(found, key=lambda view: (-view.said.epoch, -view.said.round)) if len(found) > 1 else found


def up_bytes_s(state: State) -> float:
    """This member's uplink, as far as it was used towards all others of the last group at once; 0: not measured."""
    weights = state.last.weights
    return sum(view.said.from_me_bytes_s for view in state.views.values() if view.peer in weights)


def lines(state: State) -> dict[str, float]:
    """Everybody's uplink, bytes/s."""
    return {view.peer: view.said.up_bytes_s for view in state.views.values()} | {state.config.me: up_bytes_s(state)}


# ---- farewells -------------------------------------------------------------------------------------------------------


def take_farewells(state: State, said: Iterable[Signed[Farewell]]) -> None:
    """Keep what was heard of members that leave in this round or the next.

    A stranger's counts for nothing, and anybody can make as many as they like.
    """
    for item in said:
        round = item.value.round
        known = state.farewells.get(round)
        if known is not None and item.by in known.by_peer:
            continue
        near = state.round <= round <= state.round + 1
        near = near and (item.value.run, item.value.epoch) == (state.config.run, state.epoch)
        speaks = item.by in state.last.weights or item.by in state.views or item.by == state.config.me
        if near and speaks and len(known.by_peer if known else ()) < MAX_FAREWELLS:
            state.farewells[round] = (known or Farewells()).joined(Farewells({item.by: item}))


def farewells_to_tell(state: State) -> list[Signed[Farewell]]:
    return [item for known in state.farewells.values() for item in known.signed]


# ---- what this member says of itself ---------------------------------------------------------------------------------


def own_said(state: State, now: float) -> Said:
    """For the others' views."""
    box, config = state.box, state.config
    return Said(
        round=state.round,
        base=state.last.state,
        tokens=state.own.tokens,
        attempt=max(box.attempt, 0) if box.round == state.round else 0,
        leaving=state.leaving is not None,
        reduce_only=config.reduce_only,
        step_s=state.own.step_s,
        hears=len(alive(state, now)),
        up_bytes_s=up_bytes_s(state),
        epoch=state.last.epoch,
    )
