"""An attempt at a round: how it is promised, given up, or leads to a new head.

`lead`, `bound`, `tally` and `follow` call this.
"""

from __future__ import annotations

from collections.abc import Sequence

from peer.round import turns, views
from peer.round.actions import (
    Aborted,
    Action,
    AllReduce,
    Commit,
    Decline,
    Fetch,
    SaveBox,
    SendAbort,
    Stage,
    StopAllReduce,
)
from peer.round.box import Ballot, Box
from peer.round.group import Group
from peer.round.state import Averaging, Bound, Fetching, Keep, Phase, Saving, State, Work
from protocol.agreement import Agreement
from protocol.signed import Signed
from protocol.statements import Cast, Promise, Vote
from protocol.succession import Last

FULL_DISK = "a full or broken disk"  # told to the others
NOTHING: list[Action] = []  # what an event comes to by which nothing that was decided can change
FREE_ATTEMPTS = 1000  # that one may be ahead of what was promised: who jumps further would use up the round's numbers


def wake(state: State, at: float) -> None:
    """Ask for a tick at that time."""
    if at < state.wake_at:
        state.wake_at = at


def save(state: State, box: Box, phase: Phase | None, actions: list[Action], unless: list[Action]) -> list[Action]:
    """Have a box saved; then take up a phase and do what is given, or (`unless`) what comes of a disk that fails."""
    state.saving = Saving(box, phase, actions, unless)
    return [SaveBox(box)]


def abort(state: State, why: str, now: float, *, culprit: str = "", told: str = "") -> list[Action]:
    """Give up what this member is in; its work is kept, and the others of its group are told."""
    phase, actions = state.phase, [Aborted(state.round, state.box.attempt, why)]
    found: list[Action] = list(actions)
    if isinstance(phase, Bound) and phase.call is not None:
        found.append(Decline(phase.call, why))
    if isinstance(phase, Averaging):
        found.append(StopAllReduce(why))
    if state.is_grouped:
        group: Group = phase.group  # type: ignore[union-attr]
        blame(state, culprit, told or why, now)
        others = [peer for peer in group.everyone if peer != state.config.me]
        reason = (told or why)[:200]
        found.append(SendAbort(others, group.digest, group.round, group.attempt, reason, culprit))
    state.phase = Work()
    state.due_since = None
    state.retry_at = now + min(0.1 * 2 ** min(state.attempts, 6), state.config.timing.retry_most_s)
    return found


def blame(state: State, culprit: str, why: str, now: float) -> None:
    """Leave a member out of the next attempts; a wrong word costs it no more than that."""
    if culprit and culprit != state.config.me and culprit in state.views:
        state.blame.blame(culprit, why, now)


def check_attempt(state: State, attempt: int) -> str:
    """Why an attempt is not to be taken up; empty: it may be."""
    if state.box.is_forgotten and state.box.round == state.round:
        return "I voted in this round before a restart, and cannot show for what"
    if state.box.epoch > state.epoch:
        return "the coordinator has said anew who decides, and I wait to hear it again"
    most = _usual_attempt(state) + FREE_ATTEMPTS
    return f"attempt {attempt}: expected {most} at most" if attempt > most else ""


def _usual_attempt(state: State) -> int:
    """The attempt that half of the acceptors' weight is at, or this member itself: one alone cannot push it."""
    own = state.box.attempt if state.box.round == state.round else 0
    deciding = turns.acceptors(state)
    at = sorted(
        ((view.said.attempt, deciding[view.peer]) for view in state.views.values() if view.peer in deciding),
        reverse=True,
    )
    held, total = 0, sum(deciding.values())
    for attempt, weight in at:
        held += weight
        if 2 * held > total:
            return max(own, attempt)
    return max(own, 0)


def own_promise(state: State, attempt: int, leader: str) -> Signed[Promise]:
    """What this member has voted for, signed for all members of an attempt."""
    ballot = state.box.voted(state.round)
    config, last = state.config, state.last
    said = Promise(
        run=config.run,
        round=state.round,
        base=last.state,
        attempt=attempt,
        leader=leader,
        cast=(Cast(**ballot._asdict()),) if ballot else (),
        epoch=state.epoch,
    )
    return config.sign(said)


def sign_vote(state: State, ballot: Ballot) -> Signed[Vote]:
    config = state.config
    vote = Vote(run=config.run, round=state.round, base=state.last.state, epoch=state.epoch, **ballot._asdict())
    return config.sign(vote)


def take_group(state: State, group: Group, now: float) -> list[Action]:
    """Take part in a group that has been checked."""
    state.newest_group = group
    views.take_farewells(state, group.farewells.signed)
    started: list[Action] = [Stage(state.round, "group")]
    if group.complete:
        state.phase = Fetching(group, group.complete, now, then_commit=False)
        sources = [peer for peer in group.voters if peer != state.config.me]
        return [*started, Fetch(group.complete, sources, keeps=True)]
    state.phase = Averaging(group, now)
    return [*started, AllReduce(group)]


def advance(state: State, agreement: Agreement, now: float, passed: Sequence[Agreement] = ()) -> list[Action]:
    """Stand on a later agreement: everything of the round before is over.

    Args:
        passed: agreements of rounds in between, as far as they are known.
    """
    me, last, phase = state.config.me, Last.of(agreement), state.phase
    took_part = me in agreement.weights
    has_changed_branch = last.epoch > state.last.epoch and agreement.base != state.last.state
    waited_s = now - state.own.since if state.own.claim is not None else 0.0
    if took_part:
        state.length.waited(waited_s)
    group = state.newest_group
    actions: list[Action] = []
    if isinstance(phase, Averaging):
        actions.append(StopAllReduce("the round is over"))
    if isinstance(phase, Bound) and phase.call is not None:
        actions.append(Decline(phase.call, f"round {state.round} is over"))
    rounds = last.round - state.last.round
    done = Commit(
        agreement,
        counted=took_part,
        may_wait=0 if has_changed_branch else last.may_have_waited(me),
        is_late=not took_part and agreement.base == state.last.state,
        rounds=rounds,
        waited_s=waited_s,
        attempts=state.attempts,
        left_out=group.left_out if group is not None and took_part else (),
    )
    turns.rounds_made(state, [made.weights for made in (*passed, agreement)], now)
    if group is not None:
        state.blame.kept_their_word(group.leader, agreement.weights, now)
    state.vote_before = state.votes.get(me) if rounds == 1 else None
    state.last, state.box = last, state.box.standing_on(last.epoch, last.round)
    state.farewells = {number: known for number, known in state.farewells.items() if number >= state.round}
    state.votes, state.gave_up, state.newest_group = {}, set(), None
    state.own.tokens, state.own.is_called, state.own.claim = 0, False, None
    state.attempts, state.due_since, state.retry_at, state.round_started = 0, None, 0.0, now
    state.phase = Keep(last.round)
    return [*actions, done]
