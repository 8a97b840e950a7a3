"""Leading: when this member asks the others for claims, how long it waits, and what group it makes of the answers.

Nobody waits for a member that is gone, and why each was left out is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from peer.round import group as groups
from peer.round import shares, turns, views
from peer.round.actions import Action, CloseWork, Propose, SendGroup, Stage
from peer.round.attempt import NOTHING, abort, check_attempt, own_promise, save, take_group, wake
from peer.round.events import Declined, GroupTaken, Joined
from peer.round.group import MAX_LEFT_OUT, MAX_REASON, MAX_REDUCERS, Group, Member, Reducer
from peer.round.state import Averaging, Lead, State, View
from protocol import canonical
from protocol.errors import PotluckError, RoundAborted, VerificationError


def watch(state: State, now: float) -> list[Action]:
    """While the trainer works: lead, when the round is due and it is this member's turn."""
    spec, timing = state.config.spec, state.config.timing
    over = spec.run.rounds and state.round > spec.run.rounds
    if state.own.tokens == 0 or over or state.config.reduce_only or state.leaving is not None:
        state.due_since = None
        return []
    there = turns.others(state, now)
    if not turns.is_due(state, there, now):
        state.due_since = None
        wake(state, turns.due_at(state))
        return []
    wake(state, now + timing.poll_s)
    if turns.enough(state, there, now) is not None:
        state.due_since = None
        return []
    state.due_since = now if state.due_since is None else state.due_since
    place = turns.place_in_line(state, there, now)
    if place is None or (state.own.is_called and state.own.claim is None):  # its work is not ready
        return []
    at = max(state.due_since + place * timing.next_in_line_s, state.retry_at)
    if now < at:
        wake(state, at)
        return []
    if now < state.due_since + timing.hold_most_s and turns.falls_silent(state, there, now):
        return []
    return propose(state, there, now)


def propose(state: State, there: list[View], now: float) -> list[Action]:
    """Ask for claims and promises, once this member's own promise is on disk."""
    config, round = state.config, state.round
    state.attempts += 1
    reducing = turns.reducers(state, now)
    attempt = max(state.box.next_attempt(round), state.farewells_now().from_attempt)
    heard = [
        view.said.attempt + 1 for view in there if view.said.attempt and not check_attempt(state, view.said.attempt + 1)
    ]
    attempt = max([attempt, *heard])
    if why := check_attempt(state, attempt):
        return abort(state, why, now)
    asked = [view.peer for view in turns.to_ask(state, there, now, attempt)]
    timeout_s = patience_s(state, there)
    phase = Lead(
        attempt,
        now,
        timeout_s,
        tuple(asked),
        frozenset(turns.acceptors(state)),
        left_out=turns.why_unasked(state, asked, now),
    )
    everyone = [config.me, *asked, *reducing]
    call = Propose(asked, round, state.last.state, attempt, timeout_s, everyone, state.deciding_word)
    actions: list[Action] = [Stage(round, "propose"), CloseWork(), call]
    return save(state, state.box.promise(round, attempt, config.me), phase, actions, [])


def patience_s(state: State, there: list[View]) -> float:
    """How long members may take to hand over: three micro-batches of the slowest of those whose votes decide."""
    deciding, timing = turns.acceptors(state), state.config.timing
    slowest = max([state.own.step_s, *(view.said.step_s for view in there if view.peer in deciding)])
    return min(max(3 * slowest, timing.propose_least_s), timing.propose_most_s)


# ---- answers ---------------------------------------------------------------------------------------------------------


def on_joined(state: State, event: Joined, now: float) -> list[Action]:
    phase, peer = state.phase, event.by
    if not isinstance(phase, Lead) or phase.attempt != event.attempt or peer not in phase.asked:
        return NOTHING
    terms = state.terms()
    try:
        if not peer == event.member.peer == event.member.claim.by:
            raise VerificationError("the claim is another peer's")
        terms.check_claim(event.member.claim)
        cast = groups.check_votes_shown(peer, event.shown, terms)
        if groups.check_promise(event.promise, peer, phase.attempt, state.config.me, terms) != set(cast):
            raise VerificationError("its promise is not what it shows")
    except PotluckError as error:
        phase.left_out[peer] = error.message[:MAX_REASON]
        return []
    phase.members[peer], phase.cast[peer], phase.promises[peer] = event.member, cast, event.promise
    phase.unheard[peer] = frozenset(event.unheard)
    views.take_farewells(state, event.farewells)
    return []


def on_declined(state: State, event: Declined, now: float) -> list[Action]:
    phase = state.phase
    if not isinstance(phase, Lead) or phase.attempt != event.attempt or event.by not in phase.asked:
        return NOTHING
    phase.left_out[event.by] = event.why[:MAX_REASON]
    if now - phase.started > state.config.timing.quick_s:
        phase.silent.add(event.by)
    return []


def on_group_taken(state: State, event: GroupTaken, now: float) -> list[Action]:
    """A member has taken the group that this one made, or has not: then nobody need wait for the all-reduce."""
    phase = state.phase
    if not event.why or not isinstance(phase, Averaging) or phase.group.attempt != event.attempt:
        return NOTHING
    if phase.group.leader != state.config.me:
        return NOTHING
    if event.reached:
        culprit = event.by if state.blame.balked(event.by) else ""
    else:
        culprit = "" if views.is_alive(state, event.by, now) else event.by
    return abort(state, f"{event.by[-8:]}: {event.why}", now, culprit=culprit)


def go_on(state: State, now: float) -> list[Action]:
    """Wait until all have answered, are gone, or have had their time; then make a group."""
    phase = state.phase
    assert isinstance(phase, Lead)
    if state.own.claim is None and now >= phase.started + phase.timeout_s:
        return abort(state, f"own work was not finished within {phase.timeout_s:.0f} s", now)
    waiting = [peer for peer in phase.asked if peer not in phase.members and peer not in phase.left_out]
    if waiting and not _is_enough_time(state, phase, waiting, now):
        wake(state, now + state.config.timing.poll_s)
        return []
    if state.own.claim is None:
        wake(state, phase.started + phase.timeout_s)
        return []
    for peer in waiting:
        phase.silent.add(peer)
        phase.left_out[peer] = f"no answer; not heard for {views.silent_s(state, peer, now):.0f} s"
    state.blame.asked(phase.members, phase.silent, now)
    try:
        group = _choose(state, phase, now)
    except (RoundAborted, VerificationError) as error:
        return abort(state, error.message, now)
    others = [peer for peer in group.everyone if peer != state.config.me]
    return [*take_group(state, group, now), SendGroup(others, group)]


def _is_enough_time(state: State, phase: Lead, waiting: list[str], now: float) -> bool:
    """Whether those that have not answered have had their time.

    Those whose votes decide have the proposal's own, however slow they say they are, and more on a slow line; who has
    done nothing yet in this round has a third of it.
    """
    alive = [peer for peer in waiting if views.is_alive(state, peer, now)]
    if not alive:
        return True
    most_s = phase.timeout_s
    if any(peer in phase.deciding for peer in alive):
        most_s += max(views.patience_s(state, peer) for peer in phase.asked if peer in phase.deciding)
    elif not any(state.views[peer].said.tokens for peer in waiting if peer in state.views):
        most_s /= 3
    return now - phase.started > most_s


# ---- the group -------------------------------------------------------------------------------------------------------


def _choose(state: State, phase: Lead, now: float) -> Group:
    """A new group, or an old one whose state may already be committed somewhere.

    Raises:
        RoundAborted: no majority has answered, or a later attempt must be taken.
        Undecided: only members that are silent know which of two states was committed.
        VerificationError: the group is too small, or nobody in it can reduce.
    """
    config, terms, attempt = state.config, state.terms(), phase.attempt
    assert state.own.claim is not None
    own = Member(config.me, state.own.claim, config.certificate(), config.reachable)
    ballot = state.box.voted(state.round)
    mine = {ballot: state.box.group} if ballot and state.box.group else {}
    cast = {**phase.cast, config.me: mine}
    promises = {**phase.promises, config.me: own_promise(state, attempt, config.me)}
    shown = [group for said in cast.values() for group in said.values()]
    farewells = state.farewells_now().joined(*(group.farewells for group in shown))
    if farewells.from_attempt > attempt:
        raise RoundAborted(f"a member left after attempt {farewells.from_attempt - 1}")
    if len(cast) < config.spec.sync.min_peers:
        raise RoundAborted(f"only {len(cast)} peers answered")
    lock = groups.locked(cast, shown, farewells, turns.counted(state, farewells))
    evidence = {(group.digest, tuple(group.farewells.by_peer)): group for group in shown}
    shows: dict[str, Any] = {
        "promises": tuple(promises[peer] for peer in sorted(promises)) if attempt else (),
        "voted": tuple(evidence.values()),
        "farewells": farewells,
    }
    members = {**phase.members, config.me: own}
    if lock is not None:
        group = next(group for group in shown if group.digest == lock.group)
        return replace(group.completing(attempt, config.me, lock.state, _witnesses(state, members, farewells)), **shows)
    chosen, helping = _shared(state, members, phase, attempt, now)
    left_out = tuple(sorted(phase.left_out.items()))[:MAX_LEFT_OUT]
    group = Group(
        terms.round, terms.base, attempt, config.me, tuple(chosen), word=terms.word, reducers=helping, left_out=left_out
    )
    return replace(group, **shows).weighed(terms)


def _witnesses(state: State, members: dict[str, Member], farewells: Any) -> list[tuple[str, str]]:
    """Those whose votes decide and that have answered: they help to complete what they have not averaged."""
    if state.config.spec.sync.rules < 3:
        return []
    deciding = turns.counted(state, farewells)
    return [(peer, member.certificate) for peer, member in sorted(members.items()) if peer in deciding]


def _shared(
    state: State, joining: dict[str, Member], phase: Lead, attempt: int, now: float
) -> tuple[list[Member], tuple[Reducer, ...]]:
    """The members in order, with their shares of the reducing, and who reduces for them: then they reduce nothing."""

    def order(member: Member) -> str:
        return canonical.sha256_hex(f"{state.round}/{attempt}/{member.peer}".encode())

    members = sorted(joining.values(), key=order)
    deaf = frozenset().union(*(phase.unheard.get(member.peer, frozenset()) for member in members))
    able = [peer for peer in turns.reducers(state, now) if peer not in deaf][:MAX_REDUCERS]
    helping = tuple(Reducer(peer, state.config.certificate_of(peer), 1) for peer in able)
    if helping:
        return [_sharing(member, 0) for member in members], helping
    members = connected(members, phase)
    lines = views.lines(state)
    rates = {member.peer: lines.get(member.peer, 0.0) for member in members}
    found = shares.shares(rates, reducing(members, phase))
    return [_sharing(member, found[member.peer]) for member in members], ()


def _sharing(member: Member, share: int) -> Member:
    return member if member.share == share else replace(member, share=share)


def connected(members: list[Member], phase: Lead) -> list[Member]:
    """Those that can average together: all, as long as at least one of them is heard by all the others.

    Two members behind firewalls do not hear each other: neither reduces, and they meet at one that both can reach. When
    there is none, whoever is heard by the fewest is left out, until there is one.
    """
    while members and not reducing(members, phase):
        deaf = {member.peer: _not_heard_by(member.peer, members, phase) for member in members}
        worst = max(members, key=lambda member: (len(deaf[member.peer]), member.peer))
        members = [member for member in members if member is not worst]
        phase.left_out[worst.peer] = f"{len(deaf[worst.peer])} of the others cannot reach it"
    if not members:
        raise VerificationError("nobody in the group can be reached to reduce")
    return members


def reducing(members: Iterable[Member], phase: Lead) -> set[str]:
    """Those that all the others can reach."""
    members = list(members)
    able = {member.peer for member in members if member.can_reduce}
    return {peer for peer in able if not _not_heard_by(peer, members, phase)} if phase.unheard else able


def _not_heard_by(peer: str, members: Iterable[Member], phase: Lead) -> set[str]:
    """Members that do not hear this one, or that it does not hear."""
    mine = phase.unheard.get(peer, frozenset())
    return {other.peer for other in members if peer in phase.unheard.get(other.peer, frozenset()) or other.peer in mine}
