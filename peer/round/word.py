"""The coordinator's word: who decides a round where the members' own rules cannot say, and what it undoes.

Of round 1 the beginners decide, and that word is final. Where half of the last agreed weight is gone for good, or only
the gone know which of two states was committed, the host names who goes on (`protocol.epoch`): what was promised and
voted in the round before is void, and rounds that were made unseen are undone.
"""

from __future__ import annotations

from peer.round import views
from peer.round.actions import Action
from peer.round.attempt import abort, sign_vote
from peer.round.state import Bound, Lead, State
from protocol.epoch import Epoch, Word
from protocol.majority import has_majority
from protocol.signed import Signed
from protocol.succession import decides_after


def take(state: State, word: Signed[Word] | None, now: float) -> list[Action]:
    """Take a word whose signature was checked, unless a newer one is known."""
    known = state.word
    if word is None or word == known or (_number(word) and state.config.spec.sync.rules < 3):
        return []
    if known is not None and _number(word) <= _number(known):
        return []
    before = state.epoch
    state.word = word
    if not decides_after(word.value, state.last) or state.epoch == before:
        return []
    found: list[Action] = []
    if state.is_grouped or isinstance(state.phase, Lead | Bound):
        found = abort(state, "the coordinator has said anew who decides", now)
    state.box = box = state.box.in_epoch(state.epoch, state.round)
    state.votes, state.gave_up, state.newest_group, state.farewells = {}, set(), None, {}
    ballot = box.voted(state.round)
    if ballot is not None:  # cast by this very word, before a restart
        state.votes[state.config.me] = sign_vote(state, ballot)
    views.take_farewells(state, box.farewells.values())
    state.attempts, state.retry_at = 0, now
    return found


def is_void(state: State) -> bool:
    """Whether nobody can go on by the newest word any more.

    Too many of those whom it names have then gone past its round without it, because they did not hear it in time.
    """
    word = state.word.value if state.word else None
    if not isinstance(word, Epoch):
        return False
    stands = {view.peer: (view.said.epoch, view.said.round - 1) for view in state.views.values()}
    stands[state.config.me] = (state.last.epoch, state.last.round)
    past = {peer for peer, (epoch, round) in stands.items() if epoch < word.epoch and round > word.round}
    return not has_majority(word.weights.keys() - past, word.weights)


def _number(word: Signed[Word]) -> int:
    return word.value.epoch if isinstance(word.value, Epoch) else 0
