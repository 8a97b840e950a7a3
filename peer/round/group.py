"""A group: the members that average together in one attempt at a round, each with the claim that it signed before.

The leader relays the claims and is not believed: every member checks each of them, and the group's digest is over the
claims in order, so two members that hold the same digest average the same updates with the same weights. Signatures and
certificates are checked before anything gets here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from peer.round import quorum
from peer.round.box import Ballot
from peer.round.farewells import Farewells
from protocol import succession
from protocol.agreement import Counts, group_digest
from protocol.epoch import Word
from protocol.errors import VerificationError
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import Claim, Promise, Vote
from protocol.succession import Last

MAX_SHARE = 1 << 20
MAX_REDUCERS = 64
MAX_LEFT_OUT, MAX_REASON = 64, 120
MAX_VOTED = 64  # groups that the promises of one attempt may name

Shown = tuple[tuple["Signed[Vote]", "Group"], ...]  # votes that a member tells of, each with what it was about


@dataclass(frozen=True)
class Member:
    """One member of a group."""

    peer: str
    claim: Signed[Claim]
    certificate: str
    can_reduce: bool
    share: int = 1  # of the reducing, as a part of the sum of all; 0 when it cannot reduce


@dataclass(frozen=True)
class Reducer:
    """Who reduces for a group without being one of it: it brings no update, and has no vote."""

    peer: str
    certificate: str
    share: int


@dataclass(frozen=True)
class Terms:
    """What a claim must agree with to be let into a group of this round."""

    run: str
    spec: RunSpec
    values: int  # of this round's update: the trainable parameters, or as many as its fragment has
    chunk_values: int
    last: Last  # the round before
    word: Signed[Word] | None = None  # the coordinator's, on who decides this round, where it is by one

    @property
    def round(self) -> int:
        return self.last.round + 1

    @property
    def base(self) -> str:
        """State digest."""
        return self.last.state

    @property
    def epoch(self) -> int:
        """That statements of this round name."""
        return succession.epoch_after(self.last, self.word.value if self.word else None)

    def check_claim(self, claim: Signed[Claim]) -> None:
        """Check that a claim may be in a group of this round. Raises: VerificationError."""
        made = claim.value
        if made.run != self.run:
            raise VerificationError("claims work for another run")
        succession.check_claim(claim.by, made, self.last, self.spec)
        update = made.update
        if (update.values, update.chunk_values, update.codec) != (self.values, self.chunk_values, self.spec.sync.wire):
            raise VerificationError("claims an update of another size, chunk size or codec than the run's")


@dataclass(frozen=True)
class Group:
    """The members of an attempt, and what shows that they may make it.

    `weighed` has checked it; before, nothing is believed.
    """

    round: int
    base: str
    attempt: int
    leader: str
    members: tuple[Member, ...]
    counts: Counts = field(default_factory=lambda: Counts({}))  # what its claims count for
    complete: str = ""  # not averaging, but completing the vote for this state
    promises: tuple[Signed[Promise], ...] = ()  # after attempt 0: of a majority, to show what must be completed
    voted: tuple[Group, ...] = ()  # the groups that those promises name
    word: Signed[Word] | None = None  # where it is the coordinator's that says who decides this round
    left_out: tuple[tuple[str, str], ...] = ()  # (peer id, why), by the leader's word; for people
    farewells: Farewells = field(default_factory=Farewells)  # by which this attempt's majorities are counted
    reducers: tuple[Reducer, ...] = ()  # not empty: the members themselves reduce nothing
    witnesses: tuple[
        tuple[str, str], ...
    ] = ()  # (peer id, certificate): acceptors outside it that complete it with them

    def weighed(self, terms: Terms) -> Group:
        """The same with what its claims count for, once it is found to keep the rules.

        Raises:
            VerificationError: too small or large, somebody twice, nobody who can reduce, or a claim for another round.
        """
        sync, claims = terms.spec.sync, {member.peer: member.claim.value for member in self.members}
        if (self.round, self.base) != (terms.round, terms.base):
            raise VerificationError(f"the group is for round {self.round}, expected round {terms.round} from our base")
        if not sync.min_peers <= len(self.members) <= sync.max_group or len(claims) != len(self.members):
            raise VerificationError(f"a group has {sync.min_peers} to {sync.max_group} members, each once")
        reducing = {reducer.peer for reducer in self.reducers}
        if len(reducing) < len(self.reducers) or reducing & set(claims):
            raise VerificationError("somebody reduces twice, or is a member as well")
        able = any(member.can_reduce and 0 < member.share <= MAX_SHARE for member in self.members)
        if not able and not any(0 < reducer.share <= MAX_SHARE for reducer in self.reducers):
            raise VerificationError("nobody in the group can be reached to reduce")
        if self.farewells.from_attempt > self.attempt:
            late = self.farewells.from_attempt
            raise VerificationError(f"a farewell counts from attempt {late} on, not in {self.attempt}")
        if self.word != terms.word:
            raise VerificationError("the group is not of those whom the coordinator named to decide this round")
        for member in self.members:
            terms.check_claim(member.claim)
        counts = succession.counted(claims, terms.last, terms.spec)
        voted = tuple(item.weighed(terms) for item in self.voted)
        return self if (counts, voted) == (self.counts, self.voted) else replace(self, counts=counts, voted=voted)

    @property
    def weights(self) -> Mapping[str, int]:
        return self.counts.weights

    def completing(self, attempt: int, leader: str, state: str, witnesses: Iterable[tuple[str, str]]) -> Group:
        """The same claims, voted on again in a later attempt, by acceptors outside the group, too."""
        outside = tuple(item for item in witnesses if item[0] not in self.by_peer)
        return replace(
            self, attempt=attempt, leader=leader, complete=state, left_out=(), reducers=(), witnesses=outside
        )

    def bare(self) -> Group:
        """Without what shows that it may be: what a vote is about."""
        return replace(self, promises=(), voted=()) if self.promises or self.voted else self

    @cached_property
    def digest(self) -> str:
        """Names the claims and their order; the same in every attempt at completing."""
        return group_digest([member.claim for member in self.members])

    @cached_property
    def by_peer(self) -> dict[str, Member]:
        return {member.peer: member for member in self.members}

    @cached_property
    def voters(self) -> tuple[str, ...]:
        """Peer ids of those that may vote in it."""
        return (*self.by_peer, *(peer for peer, _ in self.witnesses))

    @cached_property
    def everyone(self) -> tuple[str, ...]:
        """Peer ids of all that it is sent to: voters, and those that reduce for them."""
        return (*self.voters, *(reducer.peer for reducer in self.reducers))

    def ranges(self, chunks: int) -> dict[str, range]:
        """Which chunks each reducer reduces: by their shares, in group order, cut at chunk boundaries."""
        reducers: list[Reducer | Member] = [item for item in self.reducers or self.members if item.share]
        reached = list(itertools.accumulate((member.share for member in reducers), initial=0))
        bounds = [chunks * share // reached[-1] for share in reached]
        return {member.peer: range(bounds[i], bounds[i + 1]) for i, member in enumerate(reducers)}


def ballot_of(vote: Vote) -> Ballot:
    return Ballot(vote.attempt, vote.group, vote.state, vote.completes)


def locked(
    cast: Mapping[str, Iterable[Ballot]], shown: Iterable[Group], farewells: Farewells, acceptors: Mapping[str, int]
) -> Ballot | None:
    """What the answers to a proposal say must be completed; None: a new group may average.

    The leader asks this before it makes a group, and every member before it takes part in one.

    Args:
        cast: member -> what it voted for before, as it has signed.
        shown: the groups that those votes are about, weighed.
        farewells: by which the attempt is counted.
        acceptors: who speaks for how much in it.

    Raises:
        RoundAborted: no majority has answered.
        Undecided: only members that are silent know which of two states was committed.
    """
    shown = list(shown)
    carried = Farewells().joined(*(group.farewells for group in shown))
    return quorum.locked(
        cast,
        acceptors,
        {group.digest: group.weights for group in shown},
        left=farewells.by_peer,
        carried=carried.by_peer,
    )


def check_promise(promise: Signed[Promise], peer: str, attempt: int, leader: str, terms: Terms) -> set[Ballot]:
    """What a promise in this very attempt says that its author had voted for. Raises: VerificationError."""
    said = promise.value
    expected = (terms.run, terms.round, terms.base, terms.epoch, attempt, leader)
    if promise.by != peer or (said.run, said.round, said.base, said.epoch, said.attempt, said.leader) != expected:
        raise VerificationError(f"{peer} has made a promise for another attempt or leader than {attempt}")
    return {Ballot(item.attempt, item.group, item.state, item.completes) for item in said.cast}


def check_votes_shown(peer: str, shown: Shown, terms: Terms) -> dict[Ballot, Group]:
    """What a member voted for in earlier attempts, with the groups weighed. Raises: VerificationError."""
    found: dict[Ballot, Group] = {}
    for signed, group in shown:
        vote, group = signed.value, group.weighed(terms)
        expected = (terms.run, terms.round, terms.base, terms.epoch, group.digest)
        if signed.by != peer or (vote.run, vote.round, vote.base, vote.epoch, vote.group) != expected:
            raise VerificationError("a vote that is another's, or for another round or group")
        found[ballot_of(vote)] = group
    return found


def check_shown(group: Group, terms: Terms, acceptors: Mapping[str, int]) -> None:
    """Check that a leader has passed over nothing: what its group's promises say must be completed, is.

    Args:
        group: weighed.
        acceptors: who speaks for how much in its attempt.

    Raises:
        VerificationError: a promise does not hold, or says something else.
        RoundAborted, Undecided: they are not a majority's, or leave two states open.
    """
    if not group.attempt:  # there was no vote before
        if group.complete:
            raise VerificationError("there is nothing to complete in the first attempt")
        return
    cast: dict[str, set[Ballot]] = {}
    for promise in group.promises:
        if promise.by in cast:
            raise VerificationError(f"{promise.by} is shown twice")
        cast[promise.by] = check_promise(promise, promise.by, group.attempt, group.leader, terms)
    named = {ballot.group for ballots in cast.values() for ballot in ballots}
    if not named <= {item.digest for item in group.voted}:
        raise VerificationError("the groups that were voted on are not shown")
    if any(peer not in group.farewells.by_peer for item in group.voted for peer in item.farewells.by_peer):
        raise VerificationError("a farewell that counted before is left out")
    lock = locked(cast, group.voted, group.farewells, acceptors)
    expected: tuple[Any, str] = (lock.group, lock.state) if lock else (group.digest, "")
    if (group.digest, group.complete) != expected:
        raise VerificationError(
            f"the leader passes over state {lock.state[:12]}…, which may be committed"
            if lock
            else "the leader completes a state that nobody can have committed"
        )
