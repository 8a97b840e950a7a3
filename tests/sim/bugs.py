"""Bugs to plant in the core: each replaces public functions of `peer.round` (or of a disk), and says what must break.

A simulator that does not notice is worth nothing. Where the core stops a bug in two places, both are broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from peer.round import attempt, bound, core, follow, group, lead, leave, quorum, tally, turns, word
from peer.round import state as states
from peer.round.actions import Action, Commit, SendVote
from peer.round.box import AlreadyPromised, Ballot, Box
from peer.round.core import Core
from peer.round.events import Averaged, Ready
from peer.round.farewells import Farewells
from peer.round.state import Averaging, State
from protocol import succession
from protocol.epoch import Word
from protocol.errors import VerificationError
from protocol.majority import has_majority
from protocol.succession import Last
from tests.sim.member import Member
from tests.sim.papers import Paper, Papers
from tests.sim.plans import LIES, TELLS
from tests.sim.referee import Broken, Diverged, Stuck

ALL = tuple(kind for kind in TELLS if kind not in LIES)
TELLERS = ("boast", "split", "lose")
RIVALS = ("rival", "delay", "twice", "slow", "freeze", "hasty")  # of such plans, few show what these do
HASTY = ("hasty", "rival", "slow", "delay", "restless")
LEAVES = ("leave", "lose", "split")
WORDS = ("word", "split", "crash", "blackout")
KILLS = ("shaky", "crash", "lose", "split")


@dataclass(frozen=True)
class Bug:
    """What is replaced, and what comes of it.

    Args:
        patches: (owner, public name, what stands there instead).
        breaks: the rule that must be found broken.
        faults: kinds of faults by which it shows.
        rounds: of the plans in which it is looked for.
    """

    patches: tuple[Patch, ...]
    breaks: type[Broken]
    faults: tuple[str, ...] = ALL
    rounds: int = 10


Patch = tuple[Any, str, Any]


def everywhere(function: Callable[..., Any], instead: Callable[..., Any]) -> tuple[Patch, ...]:
    """The function is replaced in each module of the core that calls it by its name."""
    name, modules = function.__name__, (attempt, bound, core, follow, lead, leave, tally, word)
    return tuple((module, name, instead) for module in modules if vars(module).get(name) is function)


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The bug is in the core, for as long as this holds."""
    with ExitStack() as stack:
        for owner, name, instead in bug.patches:
            stack.enter_context(patch.object(owner, name, instead))
        yield


# ---- the box ---------------------------------------------------------------------------------------------------------


def _vote_anywhere(box: Box, round: int, ballot: Ballot, group: group.Group) -> Box:
    """Also in an attempt that was given up."""
    return replace(box, round=round, ballots=(*box.ballots, ballot), group=group)


_promise = Box.promise


def _promise_and_forget(box: Box, round: int, attempt: int, leader: str) -> Box:
    return replace(_promise(box, round, attempt, leader), ballots=(), group=None)


_step = Core.step


def _vote_for_what_was_given_up(core: Core, event: Any, now: float) -> list[Action]:
    """An all-reduce that comes to its end is voted on, also after its attempt was left, if the box lets it."""
    state, taken = core.state, core.__dict__.setdefault("taken", {})
    if state.newest_group is not None:
        taken[state.newest_group.digest, state.newest_group.attempt] = state.newest_group
    made = taken.get((event.group, event.attempt)) if isinstance(event, Averaged) else None
    if made is None or made.round != state.round or (isinstance(state.phase, Averaging) and state.phase.group is made):
        return _step(core, event, now)
    ballot = Ballot(made.attempt, made.digest, event.state)
    try:
        state.box = state.box.vote(state.round, ballot, made)
    except AlreadyPromised:
        return []
    return [SendVote([peer for peer in made.voters if peer != state.config.me], attempt.sign_vote(state, ballot))]


def _promise_and_keep_nothing(box: Box, round: int, attempt: int, leader: str) -> Box:
    return box if round == box.round else _promise(box, round, attempt, leader)


_take_group = attempt.take_group


def _bound_by_the_group_alone(state: State, made: group.Group, now: float) -> list[Action]:
    """Not by the promise that came before it."""
    state.box = replace(state.box, round=made.round, attempt=made.attempt, leader=made.leader)
    return _take_group(state, made, now)


_save = attempt.save


def _tell_before_saving(
    state: State, box: Box, phase: Any, actions: list[Action], unless: list[Action]
) -> list[Action]:
    first, *_ = _save(state, box, phase, [], unless)
    return [*actions, first]


# ---- quorums ---------------------------------------------------------------------------------------------------------

_must_complete = quorum.must_complete


def _only_those_who_answered(answers: Mapping, acceptors: Mapping, groups: Mapping) -> Ballot | None:
    """Takes silence for a no."""
    for ballot in sorted({ballot for ballots in answers.values() for ballot in ballots}, reverse=True):
        voters = {peer for peer, ballots in answers.items() if ballot in ballots}
        if quorum.is_committed(voters, acceptors, groups[ballot.group], ballot.completes):
            return ballot
    return None


def _pick_one(answers: Mapping, acceptors: Mapping, groups: Mapping) -> Ballot | None:
    """Chooses between two states of which either may be committed."""
    try:
        return _must_complete(answers, acceptors, groups)
    except quorum.Undecided:
        return max(ballot for ballots in answers.values() for ballot in ballots)


def _only_the_group(voters: set[str], acceptors: Mapping, group: Mapping, completes: bool) -> bool:
    return has_majority(voters, group)


def _the_group_completes(voters: set[str], acceptors: Mapping, group: Mapping, completes: bool) -> bool:
    """Whoever is in it, newcomers, too, and whatever the acceptors say."""
    return has_majority(voters, group) and (completes or has_majority(voters, acceptors))


# ---- leavers ---------------------------------------------------------------------------------------------------------


def _without_leavers(state: State, farewells: Farewells) -> dict[str, int]:
    """Who has heard that a member leaves counts without it."""
    leaving = {view.peer for view in state.views.values() if view.said.leaving}
    return {peer: weight for peer, weight in turns.weights(state).items() if peer not in leaving}


def _by_what_was_heard(state: State, farewells: Farewells) -> dict[str, int]:
    return state.farewells_now().acceptors(turns.weights(state))


# ---- the coordinator's word ------------------------------------------------------------------------------------------


def _number_of_the_last(last: Last, word: Word | None) -> int:
    return last.epoch


def _is_longer(one: Last, other: Last) -> bool:
    return one.round > other.round


def _keep_what_was_before(box: Box, epoch: int, round: int) -> Box:
    return replace(box, epoch=epoch)


_member = Papers.member


def _only_those_that_hold(papers: Papers, token: str, *, accept_expired: bool = False) -> Paper:
    return _member(papers, token)


# ---- work and states -------------------------------------------------------------------------------------------------

_abort, _advance, _averaged = attempt.abort, attempt.advance, Member.averaged
_check_claim = succession.check_claim


def _abort_and_lose(state: State, why: str, now: float, **more: str) -> list[Action]:
    state.own.claim, state.own.tokens = None, 0
    return _abort(state, why, now, **more)


def _take_any_claim(core: Core, event: Any, now: float) -> list[Action]:
    """What the trainer hands over is for the round in hand, whenever it comes."""
    if isinstance(event, Ready) and core.state.own.claim is None:
        core.state.own.claim = event.claim
    return _step(core, event, now)


def _let_any_claim_in(peer: str, claim: Any, last: Any, spec: Any) -> None:
    """Whatever round and base it is for."""


def _advance_and_count_again(*args: Any) -> list[Action]:
    """Work is late although it is in the agreement."""
    return [
        replace(item, counted=False, is_late=True) if isinstance(item, Commit) else item for item in _advance(*args)
    ]


def _let_late_work_in(peer: str, claim: Any, last: Any, spec: Any) -> None:
    """Of those, too, that were in the round before."""
    try:
        _check_claim(peer, claim, last, spec)
    except VerificationError as error:
        if "late" not in error.message:
            raise


def _keep_average_in_memory(member: Member, content: str) -> str:
    digest = _averaged(member, content)
    member.disk.averaged = {}
    return digest


BELIEVED = ((group, "check_shown", lambda group, terms, acceptors: None),)
PLANTED: dict[str, Bug] = {
    # a member that has left an attempt forgets what it averaged there: so this, too, is broken
    "promises are ignored": Bug(
        (
            (Box, "promise", _promise_and_keep_nothing),
            (Box, "is_bound", lambda *args: True),
            *everywhere(attempt.take_group, _bound_by_the_group_alone),
            (Core, "step", _vote_for_what_was_given_up),
        ),
        Diverged,
        HASTY,
    ),
    "votes are given in any attempt": Bug(
        ((Box, "vote", _vote_anywhere), (Core, "step", _vote_for_what_was_given_up)), Diverged, RIVALS, 6
    ),
    "votes are forgotten": Bug(((Box, "promise", _promise_and_forget),), Diverged),
    "a crash forgets everything": Bug(((Member, "box_found", lambda member: Box()),), Diverged),
    "locks are ignored": Bug(((quorum, "must_complete", lambda *args: None),), Diverged),
    "silence is a no": Bug(((quorum, "must_complete", _only_those_who_answered),), Diverged),
    "the group's majority is enough": Bug(((quorum, "is_committed", _only_the_group),), Diverged),
    "any vote commits": Bug(((quorum, "is_committed", lambda voters, *args: bool(voters)),), Diverged),
    "a state is taken for the digest that was asked for": Bug(
        ((Member, "is_asked_for", lambda *args: True),), Diverged
    ),
    "a group averages claims from several bases": Bug(
        ((Core, "step", _take_any_claim), (succession, "check_claim", _let_any_claim_in)), Broken
    ),
    "late work is counted although its author was in the round": Bug(
        (*everywhere(attempt.advance, _advance_and_count_again), (succession, "check_claim", _let_late_work_in)), Broken
    ),
    "an aborted round loses the work": Bug(everywhere(attempt.abort, _abort_and_lose), Broken),
    "a leaver is dropped by those who have heard of it": Bug(((turns, "counted", _without_leavers),), Diverged, LEAVES),
    "a farewell counts for those who have heard of it": Bug(((turns, "counted", _by_what_was_heard),), Stuck, LEAVES),
    "whoever is ahead is followed": Bug(((follow, "check_chain", lambda *args: None),), Diverged, TELLERS, 6),
    "what is told is not saved yet": Bug(everywhere(attempt.save, _tell_before_saving), Diverged, KILLS),
    "an average is voted for and not on disk": Bug(((Member, "averaged", _keep_average_in_memory),), Stuck, KILLS),
    "a vote of newcomers completes": Bug(((quorum, "is_committed", _the_group_completes),), Diverged, KILLS),
    "ended certificates do not count in what was voted on": Bug(
        ((Papers, "member", _only_those_that_hold),), Stuck, ("ended", "shaky", "freeze", "crash", "blackout")
    ),
    "votes do not say by which word they are": Bug(
        ((succession, "epoch_after", _number_of_the_last), (states, "epoch_after", _number_of_the_last)),
        Diverged,
        WORDS,
    ),
    "what was voted before a word binds after it": Bug(
        ((Box, "in_epoch", _keep_what_was_before),), Stuck, ("die", "wrong", "split", "crash")
    ),
    "the longer branch is followed, whatever the word": Bug(everywhere(follow.outranks, _is_longer), Stuck, WORDS),
}
