"""Turns: whether a round can be made, who leads it, and who is asked to it.

A run may have more members than a group has places. Then each is asked in its share of the rounds: what it is owed
grows with each round that it was there for, and is paid by each that it was in. Of the acceptors, whose votes decide,
just over 5/8 of the weight are asked, so that the others' places are free; the group itself may then turn over in a few
rounds. Who waits for its turn works on, and its work counts in full when it comes (`protocol.statements.Late.waited`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from peer.round import views
from peer.round.farewells import Farewells
from peer.round.state import State, View
from protocol import canonical, succession
from protocol.majority import has_majority

IDLE_ROUNDS = 2  # in which a member did nothing: then it is asked seldom
IDLE_ASKED_EVERY = 8  # rounds
MOST_OWED = 16.0  # rounds: who could not be asked for long does not fill the groups alone
KNOWN_DEBTS = 4096  # of members that are gone: whoever comes back owes, or is owed, what it was
KNOWN_ACCEPTORS = 3  # remembered: by the farewells that were heard, and by those of the groups in hand


@dataclass(frozen=True)
class Waiting:
    """Why nothing goes on: a key, and what belongs to it. `peer.screen` has the words."""

    key: str
    values: dict[str, Any] = field(default_factory=dict)


@lru_cache(maxsize=8192)
def _drawn(round: int, peer: str) -> str:
    """An order of the members that is another one each round, and nobody's choice."""
    return canonical.sha256_hex(f"{round}/{peer}".encode())


# ---- who is there ----------------------------------------------------------------------------------------------------


def weights(state: State) -> dict[str, int]:
    """Whose promises and votes count for the round in hand, before farewells."""
    return succession.acceptors(state.last, state.word.value if state.word else None)


def acceptors(state: State) -> dict[str, int]:
    """Who speaks for how much, as far as this member knows; an attempt is counted by what its leader knows."""
    return counted(state, state.farewells_now())


def counted(state: State, farewells: Farewells) -> dict[str, int]:
    """Who speaks for how much in an attempt: by the farewells that its group carries, whatever was heard otherwise."""
    known = state.acceptors
    for last, word, said, found in known:
        if said is farewells and last is state.last and word is state.word:
            return found
    found = farewells.acceptors(weights(state))
    state.acceptors = [(state.last, state.word, farewells, found), *known[: KNOWN_ACCEPTORS - 1]]
    return found


def may_lead(state: State, peer: str) -> bool:
    """Whether a member's votes decide, or did before it handed them over (of which not all may have heard)."""
    return peer in acceptors(state) or peer in weights(state)


def others(state: State, now: float) -> list[View]:
    """The other members that train on what this one trains on."""
    return [view for view in views.together(state, now) if not view.said.reduce_only]


def reducers(state: State, now: float) -> list[str]:
    """Those that only reduce for them, and have not spoilt a group a moment ago."""
    spoilt = state.blame.spoilt(now)
    return [view.peer for view in views.together(state, now) if view.said.reduce_only and view.peer not in spoilt]


def enough(state: State, there: list[View], now: float) -> Waiting | None:
    """Why a round may not be made with these; None: it may.

    Args:
        there: the other members that train.
    """
    deciding, here = acceptors(state), {state.config.me, *(view.peer for view in there)}
    begun, least = state.last.round, state.config.spec.sync.min_peers
    if least > 1:
        found = 1 + sum(view.peer in deciding or view.said.tokens > 0 for view in _candidates(state, there, now))
        if found < least:
            return Waiting("wants-more-peers", {"missing": least - found, "least": least})
    if not begun and state.ledger_round:
        return Waiting("wants-a-state", {"round": state.ledger_round})
    if not begun and state.word is None:
        return Waiting("wants-a-beginner")
    if has_majority(here, deciding):
        return None
    gone = sorted(set(deciding) - here)
    if not begun:
        return Waiting("wants-the-beginner", {"peer": ", ".join(peer[-8:] for peer in gone[:3])})
    return Waiting("too-few", {"found": len(here & set(deciding)), "count": len(deciding)})


def waiting_for(state: State, now: float) -> Waiting | None:
    """Why this member's work is in no round now; None: nothing is missing."""
    spec = state.config.spec
    over = spec.run.rounds and state.round > spec.run.rounds
    if over or state.config.reduce_only or state.own.tokens == 0 or not is_due(state, others(state, now), now):
        return None
    return enough(state, others(state, now), now)


def is_due(state: State, there: list[View], now: float) -> bool:
    round_tokens = state.config.spec.sync.round_tokens
    reached = round_tokens is not None and state.own.tokens + sum(v.said.tokens for v in there) >= round_tokens
    return reached or now >= due_at(state)


def due_at(state: State) -> float:
    """When the round's time is over, if it has a time."""
    seconds = state.config.spec.sync.round_seconds
    if seconds is None:
        return float("inf")
    return state.round_started + (state.length.seconds if seconds == "auto" else seconds)


def place_in_line(state: State, there: list[View], now: float) -> int | None:
    """Which leader this member is: 0 leads, 1 steps in when that one is silent, and so on; None: it never leads.

    Only those lead whose votes decide. Who hears few of the others would leave them out: it comes last.
    """
    me, round = state.config.me, state.round
    if not may_lead(state, me):
        return None
    hears = {view.peer: view.said.hears for view in there} | {me: len(views.alive(state, now))}
    most = len(there)  # whoever says that it hears more than there are does not push the others back

    def order(peer: str) -> tuple[bool, str]:
        return 2 * min(hears[peer], most) < most, _drawn(round, peer)

    mine, leads = order(me), acceptors(state).keys() | weights(state).keys()
    return sum(order(peer) < mine for peer in hears if peer != me and peer in leads)


def falls_silent(state: State, there: list[View], now: float) -> bool:
    """Whether somebody at work, taken for present, has missed some messages.

    Whoever asks it stops everybody's work until it is given up; until then it is better to work on.
    """
    deciding, most_s = acceptors(state), views.MISSED * state.gossip_s
    return any(now - view.heard > most_s for view in there if view.said.tokens or view.peer in deciding)


# ---- whom to ask -----------------------------------------------------------------------------------------------------


def to_ask(state: State, there: list[View], now: float, attempt: int = 0) -> list[View]:
    """As many as fit, without those that are to be left out."""
    found, places = _candidates(state, there, now), state.config.spec.sync.max_group - 1
    if len(found) <= places:
        return found
    deciding = acceptors(state)
    by_debt = sorted(found, key=lambda view: (-state.debts.get(view.peer, 0.0), _drawn(state.round, view.peer)))
    chosen = _deciding(state, by_debt, deciding, attempt)
    names = {view.peer for view in chosen}
    return [*chosen, *(view for view in by_debt if view.peer not in names)][:places]


def _deciding(state: State, by_debt: list[View], deciding: dict[str, int], attempt: int) -> list[View]:
    """The acceptors that are asked first: just over 5/8 of the weight; after a failure all, the heaviest first."""
    there = [view for view in by_debt if view.peer in deciding]
    if attempt:
        return sorted(there, key=lambda view: -deciding[view.peer])
    total, held, chosen = sum(deciding.values()), deciding.get(state.config.me, 0), []
    for view in there:
        if 8 * held > 5 * total:
            break
        chosen.append(view)
        held += deciding[view.peer]
    return chosen


def _candidates(state: State, there: list[View], now: float) -> list[View]:
    """Those whose votes decide, the heaviest first; then who has done something; then the rest, shuffled each round."""
    deciding, round = acceptors(state), state.round
    without = to_avoid(state, there, now)
    resting = state.blame.silent(now) | _resting(state, there)
    if resting:
        without = without | (resting - deciding.keys())

    def order(view: View) -> tuple[int, bool, str]:
        return -deciding.get(view.peer, 0), not view.said.tokens, _drawn(round, view.peer)

    return sorted((view for view in there if view.peer not in without), key=order)


def _resting(state: State, there: Iterable[View]) -> set[str]:
    """Who has done nothing for rounds, and nothing yet in this one: it would only keep the others waiting."""
    if not state.idle or state.round % IDLE_ASKED_EVERY == 0:  # it may be slow rather than idle
        return set()
    long = {peer for peer, rounds in state.idle.items() if rounds >= IDLE_ROUNDS}
    return long - {view.peer for view in there if view.said.tokens}


def to_avoid(state: State, there: list[View], now: float) -> set[str]:
    """Members that spoilt a group a moment ago, if a round can be made without them."""
    spoilt = state.blame.spoilt(now)
    if not spoilt:
        return spoilt
    left = {view.peer for view in there} - spoilt | {state.config.me}
    is_enough = len(left) >= state.config.spec.sync.min_peers and has_majority(left, acceptors(state))
    return spoilt if is_enough else set()


def rounds_made(state: State, groups: Sequence[Collection[str]], now: float) -> None:
    """Rounds were made by these, one after the other; to be told before this member stands on the last of them."""
    there = others(state, now)
    idle = (view.peer for view in there if not view.said.tokens and view.peer not in groups[-1])
    state.idle = {peer: state.idle.get(peer, 0) + 1 for peer in idle}
    here, debts = {state.config.me, *(view.peer for view in _at_work(state, now))}, state.debts
    for members in groups:
        live = here | set(members)
        share = len(members) / len(live)
        for peer in live:
            debt = debts.get(peer, 0.0) + share - (peer in members)
            debts[peer] = min(max(debt, -MOST_OWED), MOST_OWED)
    if len(debts) > 4 * len(here) + KNOWN_DEBTS:
        state.debts = {peer: debts[peer] for peer in here}


def _at_work(state: State, now: float) -> list[View]:
    """The others that train, also those that stand on the next round already, or not yet on this one."""
    return [
        view
        for view in views.alive(state, now)
        if not view.said.reduce_only and not view.said.leaving and abs(view.said.round - state.round) <= 1
    ]


def why_unasked(state: State, asked: Collection[str], now: float) -> dict[str, str]:
    """Members that one would expect in the round and that were not asked -> why."""
    known = {view.peer: view for view in state.views.values() if not view.said.reduce_only}
    expected = (set(state.last.weights) | set(known)) - set(asked) - {state.config.me}
    return {peer: state.blame.reason(peer, now) or _why_not(state, peer, known.get(peer), now) for peer in expected}


def _why_not(state: State, peer: str, view: View | None, now: float) -> str:
    if view is None:
        return "not heard since the round before"
    if view.said.leaving:
        return "left"
    if not views.is_alive(state, peer, now):
        return f"not heard for {views.silent_s(state, peer, now):.0f} s"
    if view.said.base != state.last.state:
        return f"at round {view.said.round}" if view.said.round != state.round else "on another branch"
    if peer in state.blame.silent(now):
        return "did not answer the last times that it was asked"
    there = others(state, now)
    if peer in _resting(state, there):
        return "has done nothing for rounds"
    full = len(there) >= state.config.spec.sync.max_group
    return "waits for its turn" if full else "not there yet when the others were asked"
