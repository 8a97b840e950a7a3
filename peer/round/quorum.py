"""Quorums: when votes commit a state, and which state may be committed somewhere already. Pure rules, after Paxos."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from peer.round.box import Ballot
from protocol.errors import RoundAborted
from protocol.majority import has_majority


class Undecided(RoundAborted):
    """Members that are silent may have committed either of two states; only their answer can tell which."""


def is_committed(voters: set[str], acceptors: Mapping[str, int], group: Mapping[str, int], completes: bool) -> bool:
    """Whether the voters for one state in one attempt commit it.

    Args:
        group: what the claims of the group count for.
        completes: the attempt averages nothing: the state is that of an earlier one, in which most of the group has
            voted for it, or has not; the acceptors alone decide.
    """
    return has_majority(voters, acceptors) and (completes or has_majority(voters, group))


def must_complete(
    answers: Mapping[str, Iterable[Ballot]],
    acceptors: Mapping[str, int],
    groups: Mapping[str, Mapping[str, int]],
) -> Ballot | None:
    """The state that may already be committed somewhere, given what the members of a new attempt say they voted for.

    Whoever could vote for a state and did not answer may have voted for it. A state is free to be dropped only when
    even with all of their votes it cannot have had its majorities. Votes for one state of one group count together,
    whatever attempt they were cast in: a member tells of its newest one for each state only.

    In the attempt that averaged a state it needed the group's majority, too; in one that completes it, the acceptors'
    alone. Had it been committed in such a one, a majority had voted in it, and one of those who answer now is among
    them. So where none of them has, only the first counts.

    Args:
        answers: member -> the ballots it cast in this round; empty for one that cast none.
        acceptors: peer id -> weight in the agreement of the round before.
        groups: group digest -> peer id -> weight, for each group that is voted for.

    Returns:
        the newest ballot for the state to complete, or None when a new group may average.

    Raises:
        Undecided: an all-reduce that did not give the same to all left two states, and either may be committed.
    """
    voters: dict[tuple[str, str], set[str]] = {}
    newest: dict[tuple[str, str], Ballot] = {}
    for peer, ballots in answers.items():
        for ballot in ballots:
            key = (ballot.group, ballot.state)
            voters.setdefault(key, set()).add(peer)
            newest[key] = max(newest.get(key, ballot), ballot)
    possible = [
        ballot
        for key, ballot in newest.items()
        if is_committed(
            voters[key] | _silent(ballot, answers, acceptors, groups), acceptors, groups[key[0]], ballot.completes
        )
    ]
    if not possible:
        return None
    last = max(ballot.attempt for ballot in possible)
    latest = [ballot for ballot in possible if ballot.attempt == last]
    if len(latest) > 1:  # an attempt that completes a state has that one only: this was an average
        raise Undecided(f"{len(latest)} states may have been committed in attempt {last}")
    return latest[0]


def _silent(
    ballot: Ballot, answers: Mapping[str, object], acceptors: Mapping[str, int], groups: Mapping[str, Mapping[str, int]]
) -> set[str]:
    """Who may have voted like this without this attempt's knowing."""
    might = groups[ballot.group].keys() | acceptors.keys() if ballot.completes else groups[ballot.group].keys()
    return might - answers.keys()


def locked(
    answers: Mapping[str, Iterable[Ballot]],
    acceptors: Mapping[str, int],
    groups: Mapping[str, Mapping[str, int]],
    *,
    left: Collection[str] = (),
    carried: Collection[str] = (),
) -> Ballot | None:
    """What the promises of an attempt say must be completed; None: a new group may average.

    Its leader asks this before it makes a group, and each member, of the same promises, before it takes part.

    Args:
        answers, acceptors, groups: as `must_complete` has them.
        left: whose farewells the attempt carries.
        carried: whose farewells the groups that were voted on carried: who left before did not vote for them.

    Raises:
        RoundAborted: those who have answered are no majority.
        Undecided: as `must_complete`.
    """
    if not has_majority(set(answers), acceptors):
        raise RoundAborted(f"only {len(answers)} peers answered")
    gone: dict[str, Iterable[Ballot]] = dict.fromkeys(set(left) - set(carried) - set(answers), ())
    return must_complete({**answers, **gone}, acceptors, groups)
