"""Leading: how one member gathers the others' claims for an attempt at a round, and what group it makes of them.

Called by `Rounds` when it is this member's turn. Nobody waits for a member that is gone, and why each was left out is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from peer import round_rules
from peer.round_rules import Ballot
from peer.swarm import pace
from peer.swarm.farewells import Farewells
from peer.swarm.group import MAX_LEFT_OUT, MAX_REASON, MAX_REDUCERS, Group, Member, Reducer, Rules
from peer.swarm.members import MemberView
from peer.swarm.node import short
from peer.swarm.talk import Talk
from peer.swarm.voting import open_voted
from protocol import canonical, swarm_pb2
from protocol.errors import FormatError, NetworkError, RefusedError, RoundAborted, VerificationError
from protocol.statements import open_promise

logger = logging.getLogger(__name__)

QUICK_S = 1.0  # whoever declines after longer than that has kept the others waiting for nothing
LOOK_S = 0.1  # how often to look whether those that have not answered are still there

Cast = dict[Ballot, tuple[Group, bytes]]  # what a member voted for -> in which group, and its signed vote


@dataclass
class Answers:
    """Who joins an attempt, with its claim and its votes, and why the others do not."""

    members: dict[str, Member] = field(default_factory=dict)
    cast: dict[str, Cast] = field(default_factory=dict)
    promises: dict[str, bytes] = field(default_factory=dict)  # the same votes, signed, for the others to see
    silent: set[str] = field(default_factory=set)  # who was asked and kept the others waiting for nothing
    left_out: dict[str, str] = field(default_factory=dict)  # peer id -> why
    farewells: Farewells = field(default_factory=Farewells)  # that they know of
    unheard: dict[str, set[str]] = field(default_factory=dict)  # peer id -> whom it does not hear


async def gather(
    talk: Talk, others: Iterable[MemberView], proposal: swarm_pb2.Proposal, rules: Rules, deciding: Collection[str]
) -> Answers:
    """Ask members for their claims; returns when all have answered, are gone, or have had their time.

    Args:
        deciding: those whose votes decide. The others have the proposal's own time, however slow they say they are, which
            is three micro-batches; who has done nothing yet in this round has a third of it.
    """
    answers, others = Answers(), list(others)
    asked = {view.peer_id: talk.spawn(_ask(talk, view.peer_id, proposal, rules, answers)) for view in others}
    at_work = {view.peer_id for view in others if view.tokens}
    slowest_s = max((talk.book.patience_s(peer) for peer in asked if peer in deciding), default=0.0)
    started = time.monotonic()
    while waiting := [peer for peer, task in asked.items() if not task.done()]:
        if any(peer in deciding and talk.book.is_alive(peer) for peer in waiting):
            most_s = proposal.timeout_s + slowest_s
        else:
            most_s = proposal.timeout_s if at_work.intersection(waiting) else proposal.timeout_s / 3
        if time.monotonic() - started > most_s or not any(talk.book.is_alive(peer) for peer in waiting):
            break
        await asyncio.wait([asked[peer] for peer in waiting], timeout=LOOK_S)
    for peer in waiting:
        asked[peer].cancel()
        answers.silent.add(peer)
        answers.left_out[peer] = f"no answer; not heard for {talk.book.silent_s(peer):.0f} s"
    return answers


async def _ask(talk: Talk, peer: str, proposal: swarm_pb2.Proposal, rules: Rules, answers: Answers) -> None:
    started = time.monotonic()
    try:
        reply = await talk.call(peer, "propose", proposal, swarm_pb2.ProposalReply, more_s=proposal.timeout_s)
        if not reply.accepted:
            answers.left_out[peer] = reply.reason[:MAX_REASON]
            if time.monotonic() - started > QUICK_S:
                answers.silent.add(peer)
            return
        member = rules.check_member(reply.claim, reply.certificate, reply.can_reduce, expected_peer=peer)
        cast = dict(open_voted(peer, item, rules) for item in reply.voted[:64])
        if open_shown(reply.promise, proposal.attempt, talk.me, rules) != (peer, set(cast)):
            raise VerificationError("its promise is not what it shows")
        answers.cast[peer], answers.promises[peer] = cast, reply.promise
        answers.farewells = answers.farewells.joined(Farewells.open(reply.farewells, rules.run, rules.round))
        answers.unheard[peer] = set(reply.unheard[: len(proposal.asked)])
        answers.members[peer] = member
    except (NetworkError, FormatError, RefusedError) as error:
        answers.left_out[peer] = error.message[:MAX_REASON]
    if peer in answers.left_out:
        logger.debug("%s does not join: %s", short(peer), answers.left_out[peer])


def choose_group(
    rules: Rules,
    attempt: int,
    me: str,
    answers: Answers,
    weights: Mapping[str, int],
    up_bytes_s: Mapping[str, float],
    reducers: Iterable[Reducer] = (),
) -> Group:
    """A new group, or an old one whose state may already be committed somewhere.

    Args:
        answers: all of them, the leader's own too.
        weights: of the round's acceptors.
        reducers: those that only reduce. With one whom all members reach, no member reduces.

    Raises:
        RoundAborted: no majority has answered, or a later attempt must be taken.
        Undecided: only members that are silent know which of two states was committed.
        VerificationError: the group is too small, or nobody in it can reduce.
    """
    shown = [group for cast in answers.cast.values() for group, _ in cast.values()]
    farewells = answers.farewells.joined(*(group.farewells for group in shown))
    if farewells.from_attempt > attempt:
        raise RoundAborted(f"a member left after attempt {farewells.from_attempt - 1}")
    if len(answers.cast) < rules.spec.sync.min_peers:
        raise RoundAborted(f"only {len(answers.cast)} peers answered")
    lock = locked(answers.cast, shown, farewells, weights)
    promises = tuple(answers.promises[peer] for peer in sorted(answers.promises)) if attempt else ()
    evidence = {(group.digest, tuple(group.farewells.envelopes)): group for group in shown}

    def showing(group: Group, **changes: Any) -> Group:
        return replace(group, promises=promises, voted=tuple(evidence.values()), farewells=farewells, **changes)

    if lock is not None:
        group = next(group for group in shown if group.digest == lock.group)
        return showing(group.completing(attempt, me, lock.state))
    members = sorted(
        answers.members.values(),
        key=lambda member: canonical.sha256_hex(f"{rules.round}/{attempt}/{member.peer_id}".encode()),
    )
    helping = _helping(reducers, members, answers)
    if helping:
        shared = [replace(member, share=0) for member in members]
    else:
        members = _connected(members, answers)
        able = _reducers(members, answers)
        found = pace.shares({member.peer_id: up_bytes_s.get(member.peer_id, 0.0) for member in members}, able)
        shared = [replace(member, share=found[member.peer_id]) for member in members]
    group = Group.build(rules, attempt, me, shared, reducers=helping)
    left_out = tuple(sorted(answers.left_out.items()))[:MAX_LEFT_OUT]
    return showing(group, left_out=left_out)


def locked(
    cast: Mapping[str, Iterable[Ballot]], shown: Iterable[Group], farewells: Farewells, weights: Mapping[str, int]
) -> Ballot | None:
    """What the answers to a proposal say must be completed; None: a new group may average.

    The leader asks this before it makes a group, and every member before it takes part in one.

    Args:
        cast: member -> what it voted for before, as it has signed.
        shown: the groups that those votes are about.
        farewells: by which the attempt is counted.
        weights: of the round's acceptors.

    Raises:
        RoundAborted: no majority has answered.
        Undecided: only members that are silent know which of two states was committed.
    """
    shown = list(shown)
    carried = Farewells().joined(*(group.farewells for group in shown))
    return round_rules.locked(
        cast,
        farewells.acceptors(weights),
        {group.digest: group.weights for group in shown},
        left=farewells.by_peer,
        carried=carried.by_peer,
    )


def open_shown(data: bytes, attempt: int, leader: str, rules: Rules) -> tuple[str, set[Ballot]]:
    """A promise in this very attempt: who made it, and what it had voted for. Raises: FormatError, RefusedError."""
    signed = open_promise(data)
    peer, said = signed.by, signed.value
    expected = (rules.run, rules.round, rules.base, attempt, leader)
    if (said.run, said.round, said.base, said.attempt, said.leader) != expected:
        raise VerificationError(f"{peer} has made a promise for another attempt or leader than {attempt}")
    return peer, {Ballot(item.attempt, item.group, item.state) for item in said.cast}


def check_shown(group: Group, rules: Rules, weights: Mapping[str, int]) -> None:
    """Check that a leader has passed over nothing: what its group's promises say must be completed, is.

    Args:
        weights: of the round's acceptors.

    Raises:
        FormatError, RefusedError: a promise does not hold, or says something else.
        RoundAborted, Undecided: they are not a majority's, or leave two states open.
    """
    if not group.attempt:  # there was no vote before
        if group.complete:
            raise VerificationError("there is nothing to complete in the first attempt")
        return
    cast: dict[str, set[Ballot]] = {}
    for data in group.promises:
        peer, ballots = open_shown(data, group.attempt, group.leader, rules)
        if cast.setdefault(peer, ballots) is not ballots:
            raise VerificationError(f"{short(peer)} is shown twice")
    named = {ballot.group for ballots in cast.values() for ballot in ballots}
    if not named <= {item.digest for item in group.voted}:
        raise VerificationError("the groups that were voted on are not shown")
    if any(peer not in group.farewells.by_peer for item in group.voted for peer in item.farewells.by_peer):
        raise VerificationError("a farewell that counted before is left out")
    lock = locked(cast, group.voted, group.farewells, weights)
    expected = (lock.group, lock.state) if lock else (group.digest, "")
    if (group.digest, group.complete) != expected:
        raise VerificationError(
            f"the leader passes over state {lock.state[:12]}…, which may be committed"
            if lock
            else "the leader completes a state that nobody can have committed"
        )


def _helping(reducers: Iterable[Reducer], members: list[Member], answers: Answers) -> tuple[Reducer, ...]:
    """Those whom all members reach."""
    deaf = set().union(*(answers.unheard.get(member.peer_id, set()) for member in members))
    return tuple(reducer for reducer in reducers if reducer.peer_id not in deaf)[:MAX_REDUCERS]


def _connected(members: list[Member], answers: Answers) -> list[Member]:
    """Those that can average together: all, as long as at least one of them is heard by all the others.

    Two members behind firewalls do not hear each other: neither reduces, and they meet at one that both can reach. When
    there is none, whoever is heard by the fewest is left out, until there is one.
    """
    while members and not _reducers(members, answers):
        deaf = {member.peer_id: _not_heard_by(member.peer_id, members, answers) for member in members}
        worst = max(members, key=lambda member: (len(deaf[member.peer_id]), member.peer_id))
        members = [member for member in members if member is not worst]
        answers.left_out[worst.peer_id] = f"{len(deaf[worst.peer_id])} of the others cannot reach it"
    if not members:
        raise VerificationError("nobody in the group can be reached to reduce")
    return members


def _reducers(members: list[Member], answers: Answers) -> set[str]:
    """Those that all the others can reach."""
    able = {member.peer_id for member in members if member.can_reduce}
    return {peer for peer in able if not _not_heard_by(peer, members, answers)}


def _not_heard_by(peer: str, members: list[Member], answers: Answers) -> set[str]:
    """Members that do not hear this one, or that it does not hear."""
    return {
        other.peer_id
        for other in members
        if peer in answers.unheard.get(other.peer_id, ()) or other.peer_id in answers.unheard.get(peer, ())
    }
