"""Following a leader: whether this member joins an attempt, and whether it takes the group that comes of it."""

from __future__ import annotations

from peer.round import box, turns, views, word
from peer.round import group as groups
from peer.round.actions import Accept, Action, CloseWork, Decline, Join, Stage
from peer.round.attempt import check_attempt, own_promise, save, take_group, wake
from peer.round.events import Grouped, Proposed
from peer.round.group import Group
from peer.round.lead import patience_s
from peer.round.state import Bound, Keep, Lead, Left, State, Work
from protocol.agreement import MAX_GROUP
from protocol.errors import PotluckError, VerificationError

LEAST_S = 0.1  # that a leader may give for an answer


def on_proposed(state: State, event: Proposed, now: float) -> list[Action]:
    """Another member asks for this one's claim, and its promise."""
    found: list[Action] = []
    if isinstance(state.phase, Keep):
        if state.parked is not None:
            found.append(Decline(state.parked.call, "another has asked since"))
        state.parked = event
        return found
    found += word.take(state, event.word, now)
    if why := _why_not(state, event, now):
        return [*found, Decline(event.call, why)]
    phase = state.phase
    try:
        saved = state.box.promise(state.round, event.attempt, event.by)
    except box.AlreadyPromised as error:
        return [*found, Decline(event.call, error.message, max(error.attempt, 0))]
    if isinstance(phase, Bound):
        if phase.is_joined and phase.leader == event.by:
            state.blame.strike(event.by, now)
        if phase.call is not None:
            found.append(Decline(phase.call, "another attempt was joined meanwhile"))
    state.attempts += 1
    timeout_s = min(max(event.timeout_s, LEAST_S), patience_s(state, turns.others(state, now)))
    until = now + timeout_s + 2 * views.patience_s(state, event.by)
    state.phase = Work()
    bound = Bound(event.by, event.attempt, event.call, event.asked, now + timeout_s, until)
    return [*found, *save(state, saved, bound, [Stage(state.round, "promise"), CloseWork()], [_unkept(event)])]


def _unkept(event: Proposed) -> Decline:
    return Decline(event.call, "a promise cannot be kept here: a full or broken disk")


def _why_not(state: State, event: Proposed, now: float) -> str:
    """Why a proposal is declined; empty: it is not."""
    if state.config.reduce_only:
        return "I only reduce"
    if (event.round, event.base) != (state.round, state.last.state):
        return f"I am at round {state.round} from {state.last.state[:8]}…"
    if state.leaving is not None or isinstance(state.phase, Left):
        return "I am leaving"
    if state.is_grouped:
        return "a group is under way"
    if state.blame.is_shunned(event.by, now):
        return "after your last proposal there came no group"
    if event.by in turns.to_avoid(state, turns.others(state, now), now):
        return "you spoilt a group a moment ago"
    if not turns.may_lead(state, event.by):
        return "only members of the last agreement, or whom the coordinator named to decide, lead"
    return check_attempt(state, event.attempt)


def go_on(state: State, now: float) -> list[Action]:
    """Answer when the own work is ready; wait for the group, unless its leader is gone."""
    phase = state.phase
    assert isinstance(phase, Bound)
    found: list[Action] = []
    if phase.call is not None and state.own.claim is not None:
        found.append(_join(state, phase, now))
        phase.call, phase.is_joined = None, True
    if phase.call is not None and now >= phase.ready_by:
        found.append(Decline(phase.call, "own work was not finished in time"))
        phase.call = None
    if now >= phase.until:
        if phase.is_joined:
            state.blame.strike(phase.leader, now)
        state.phase = Work()
    elif not views.is_alive(state, phase.leader, now) and phase.call is None:
        state.phase = Work()
    wake(state, min(phase.until, now + state.config.timing.poll_s))
    if phase.call is not None:
        wake(state, phase.ready_by)
    return found


def _join(state: State, phase: Bound, now: float) -> Join:
    me = state.config.me
    unheard = [peer for peer in phase.asked[:MAX_GROUP] if peer != me and not views.is_alive(state, peer, now)]
    voted = state.box.voted(state.round) is not None
    return Join(
        phase.call,
        own_promise(state, phase.attempt, phase.leader),
        state.votes.get(me) if voted else None,
        state.box.group if voted else None,
        state.farewells_now().signed,
        unheard,
    )


# ---- the group -------------------------------------------------------------------------------------------------------


def on_grouped(state: State, event: Grouped, now: float) -> list[Action]:
    """The leader sends the group."""
    try:
        group = _checked(state, event)
    except PotluckError as error:
        return [Decline(event.call, error.message)]
    found: list[Action] = [Accept(event.call)]
    phase = state.phase
    if isinstance(phase, Bound) and phase.call is not None:
        found.append(Decline(phase.call, "the group came before the answer"))
    return [*found, *take_group(state, group, now)]


def _checked(state: State, event: Grouped) -> Group:
    """The group, weighed. Raises: RefusedError, RoundAborted: this member does not take part in it."""
    group, config = event.group, state.config
    if not config.reduce_only and not state.box.is_bound(group.round, group.attempt, event.by):
        raise VerificationError("I am bound to another attempt")
    if state.is_grouped or isinstance(state.phase, Keep | Left | Lead):
        raise VerificationError("a group is under way")
    if group.leader != event.by:
        raise VerificationError("only its leader sends a group")
    word.take(state, group.word, state.now)
    if not state.last.round and config.spec.sync.rules > 1 and group.word is None:
        raise VerificationError("the first group does not say whom the coordinator named to begin")
    group = group.weighed(state.terms())
    _check_place(state, group)
    groups.check_shown(group, state.terms(), turns.counted(state, group.farewells))
    return group


def _check_place(state: State, group: Group) -> None:
    """Check that a group's leader has given this member its due place. Raises: VerificationError."""
    me = state.config.me
    if state.config.reduce_only:
        if group.complete or me not in group.everyone:
            raise VerificationError("I only reduce, and there is nothing to reduce")
        return
    own, ready = group.by_peer.get(me), state.own.claim
    if group.complete:
        if me not in group.voters:
            raise VerificationError("I am not one of those that complete it")
    elif own is None or ready is None or own.claim != ready:
        raise VerificationError("the group does not carry my claim")
    if group.round in state.box.farewells and me not in group.farewells.by_peer:
        raise VerificationError("the group does not carry my farewell")
