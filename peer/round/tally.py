"""The tally: this member's vote for the state that it got, the others' votes, and when they commit one."""

from __future__ import annotations

from collections.abc import Iterable

from peer.round import box, quorum, turns, views
from peer.round.actions import Action, Fetch, SendVote, ShowVotes, Stage
from peer.round.attempt import NOTHING, abort, advance, blame, save, sign_vote, wake
from peer.round.box import Ballot
from peer.round.events import Averaged, Fetched, GaveUp, NotAveraged, NotFetched, Votes
from peer.round.group import Group
from peer.round.state import Averaging, Fetching, State, Voting, Work
from protocol.agreement import Agreement
from protocol.signed import Signed
from protocol.statements import Vote

# ---- a state to vote for ---------------------------------------------------------------------------------------------


def on_averaged(state: State, event: Averaged, now: float) -> list[Action]:
    phase = state.phase
    if not isinstance(phase, Averaging) or (phase.group.digest, phase.group.attempt) != (event.group, event.attempt):
        return []
    state.usual_s = event.seconds
    if state.config.me not in phase.group.by_peer:  # it only reduces: what the members agree on, it hears from them
        state.phase = Work()
        return []
    return _vote(state, phase.group, event.state, 2 * event.seconds, now)


def on_not_averaged(state: State, event: NotAveraged, now: float) -> list[Action]:
    phase = state.phase
    if isinstance(phase, Averaging) and (phase.group.digest, phase.group.attempt) == (event.group, event.attempt):
        return abort(state, event.why, now, culprit=event.culprit)
    return []


def on_fetched(state: State, event: Fetched, now: float) -> list[Action]:
    phase = state.phase
    assert isinstance(phase, Fetching) and phase.state == event.state
    if phase.then_commit:
        return _commit(state, phase.group, phase.state, now)
    return _vote(state, phase.group, phase.state, 0.0, now)


def on_not_fetched(state: State, event: NotFetched, now: float) -> list[Action]:
    return abort(state, event.why, now)


def _vote(state: State, group: Group, digest: str, patience_s: float, now: float) -> list[Action]:
    """Vote for a state, once that is on disk; then tell it to all who may vote."""
    completes = bool(group.complete) and state.config.spec.sync.rules >= 3
    ballot = Ballot(group.attempt, group.digest, digest, completes)
    try:
        saved = state.box.vote(state.round, ballot, group.bare())
    except box.AlreadyPromised as error:
        return abort(state, error.message, now)
    others = [peer for peer in group.voters if peer != state.config.me]
    gone = frozenset(peer for peer in others if not views.is_alive(state, peer, now))
    until = now + state.config.timing.majority_s + patience_s
    vote = sign_vote(state, ballot)
    phase = Voting(group, digest, now, until, vote, gone, sent=now)
    tell: list[Action] = [SendVote(others, vote, sorted(gone)), Stage(state.round, "voted")]
    return [Stage(state.round, "vote"), *save(state, saved, phase, tell, [])]


# ---- what the others say ---------------------------------------------------------------------------------------------


def on_votes(state: State, event: Votes, now: float) -> list[Action]:
    """Note votes: that of who sends them, and of members of this member's group that it passes on.

    One for another round or base is passed over, and so is one of a stranger: anybody can make as many as they like.
    """
    own = event.own
    if own is not None and own.by == event.by:
        _take(state, own)
    group = _group_in_hand(state)
    for vote in event.others:
        if group is not None and vote.by in group.voters:
            _take(state, vote)
    if event.call is None:
        return [] if isinstance(state.phase, Voting) else NOTHING
    mine = state.votes.get(state.config.me) or state.vote_before
    return [ShowVotes(event.call, mine, _held_for(state, event, group))]


def _group_in_hand(state: State) -> Group | None:
    if state.is_grouped:
        return state.phase.group  # type: ignore[union-attr]
    return state.box.group if state.box.round == state.round else None


def _take(state: State, vote: Signed[Vote]) -> None:
    said, known = vote.value, state.votes.get(vote.by)
    here = (state.config.run, state.round, state.last.state, state.epoch)
    if (said.run, said.round, said.base, said.epoch) != here or vote.by == state.config.me:
        return
    if known is None or known.value.attempt < said.attempt:
        state.votes[vote.by] = vote


def _held_for(state: State, asked: Votes, group: Group | None) -> list[Signed[Vote]]:
    """Of the votes that somebody lacks, those for the same group in the same attempt as its own, of its voters only."""
    like = state.votes.get(asked.by)
    if like is None or group is None or like.value.group != group.digest:
        return []
    wanted = (like.value.group, like.value.attempt)
    lacking = set(group.voters) & set(asked.lacks) - {asked.by, state.config.me}
    votes = [vote for voter, vote in state.votes.items() if voter in lacking]
    return [vote for vote in votes if (vote.value.group, vote.value.attempt) == wanted]


def on_gave_up(state: State, event: GaveUp, now: float) -> list[Action]:
    """A member says that it will not vote in this attempt any more."""
    state.gave_up.add((event.by, event.group, event.attempt))
    group = state.newest_group  # it may be over here, for a reason that another member knows better
    if group is None or (group.digest, group.attempt) != (event.group, event.attempt) or event.by not in group.everyone:
        return []
    said_by = event.by[-8:]
    if isinstance(state.phase, Averaging):
        return abort(state, f"{said_by} gave up: {event.why[:200]}", now, culprit=event.culprit)
    blame(state, event.culprit, f"{event.why[:80]} (by {said_by})", now)
    return []


# ---- counting --------------------------------------------------------------------------------------------------------


def go_on(state: State, now: float) -> list[Action]:
    """Count; commit what has its majority, once the rest had a moment to vote, too; give up what can get none now."""
    phase, timing = state.phase, state.config.timing
    assert isinstance(phase, Voting)
    group = phase.group
    if not phase.decided:
        cast = _cast(state, group)
        states = {vote.value.state for vote in cast.values()}
        for digest in sorted(states):
            if _commits(state, group, _voters(cast, digest)):
                phase.decided, phase.decided_at = digest, now
        if not phase.decided:
            return _go_on_waiting(state, phase, cast, states, now)
    cast = _cast(state, group)
    if len(_voters(cast, phase.decided)) < len(group.voters) and now < phase.decided_at + timing.linger_s:
        wake(state, phase.decided_at + timing.linger_s)
        return []
    if why := _hangs_on_one(state, group, cast, phase.decided):
        return abort(state, why, now)
    if phase.decided == phase.state:
        return _commit(state, group, phase.decided, now)
    voters = sorted(_voters(cast, phase.decided))
    state.phase = Fetching(group, phase.decided, now, then_commit=True)
    return [Fetch(phase.decided, voters)]


def _go_on_waiting(
    state: State, phase: Voting, cast: dict[str, Signed[Vote]], states: Iterable[str], now: float
) -> list[Action]:
    timing, group = state.config.timing, phase.group
    named = f"{len(cast)} members named {len(set(states))}"
    if now >= phase.until:
        return abort(state, f"no majority for one state within {phase.until - phase.since:.0f} s; {named}", now)
    through = phase.through_others if now < phase.since + timing.relay_s else frozenset()
    open_ = {
        peer for peer in group.voters if peer not in cast and (_may_vote(state, peer, group, now) or peer in through)
    }
    if not any(_commits(state, group, _voters(cast, digest) | open_) for digest in states):
        return abort(state, f"no majority for one state can come together any more; {named}", now)
    wake(state, min(phase.until, now + timing.poll_s))
    if now < phase.sent + timing.vote_again_s:
        return []
    phase.sent = now
    missing = [peer for peer in group.voters if peer != state.config.me and peer not in cast]
    again = [peer for peer in missing if views.is_alive(state, peer, now)]
    have = [peer for peer in cast if peer != state.config.me and views.is_alive(state, peer, now)]
    if have:  # one that others may have reached: another one each time
        again.append(have[int(now - phase.since) % len(have)])
    return [SendVote(again, phase.vote, missing)] if again else []


def _cast(state: State, group: Group) -> dict[str, Signed[Vote]]:
    """The votes in the group's attempt, of those that may vote in it."""
    attempt, digest, found = group.attempt, group.digest, {}
    for peer in group.voters:
        vote = state.votes.get(peer)
        if vote is not None and vote.value.attempt == attempt and vote.value.group == digest:
            found[peer] = vote
    return found


def _voters(cast: dict[str, Signed[Vote]], digest: str) -> set[str]:
    return {peer for peer, vote in cast.items() if vote.value.state == digest}


def _commits(state: State, group: Group, voters: set[str]) -> bool:
    completes = bool(group.complete) and state.config.spec.sync.rules >= 3
    return quorum.is_committed(voters, turns.counted(state, group.farewells), group.weights, completes)


def _may_vote(state: State, peer: str, group: Group, now: float) -> bool:
    """Whether a member that has not voted in this attempt may still do so soon."""
    return (peer, group.digest, group.attempt) not in state.gave_up and views.is_alive(state, peer, now)


def _hangs_on_one(state: State, group: Group, cast: dict[str, Signed[Vote]], digest: str) -> str:
    """Where members name several states, no majority may hang on one of them: it may tell others another one.

    Then the next attempt completes what may be committed, so that all name one state.
    """
    named, voters = {vote.value.state for vote in cast.values()}, _voters(cast, digest)
    if len(named) > 1 and not all(_commits(state, group, voters - {voter}) for voter in voters):
        return f"members named {len(named)} states, and the majority hangs on one of them"
    return ""


def _commit(state: State, group: Group, digest: str, now: float) -> list[Action]:
    cast = _cast(state, group)
    votes = tuple(vote for vote in cast.values() if vote.value.state == digest)
    voters = {vote.by for vote in votes}
    certificates = {member.peer: member.certificate for member in group.members}
    certificates |= {peer: token for peer, token in group.witnesses if peer in voters}
    agreement = Agreement(
        claims=tuple(member.claim for member in group.members),
        votes=votes,
        certificates=certificates,
        counts=group.counts,
        farewells=group.farewells.signed,
        word=group.word,
    )
    return [Stage(state.round, "commit"), *advance(state, agreement, now)]
