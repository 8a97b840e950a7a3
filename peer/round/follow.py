"""Following: a member that is behind takes the head of the others, if it follows from its own.

A head is taken if each round on the way to it follows the one before (`protocol.succession`), and for no other reason:
how many stand on it says nothing. Who is so far behind that the others no longer hold all agreements in between starts
from one that the coordinator has in its ledger. All this goes on beside what the member does otherwise: whoever is slow
to show or to give a head holds up nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from peer.round import views, word
from peer.round.actions import Action, AskHead, Fetch
from peer.round.attempt import advance, wake
from peer.round.events import Anchored, Fetched, HeadNotShown, HeadShown, NotFetched, Woken
from peer.round.state import Fetching, Keep, Left, Search, State
from protocol import succession
from protocol.agreement import Agreement
from protocol.epoch import Word
from protocol.errors import PotluckError, VerificationError
from protocol.last import Last
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.succession import check_branch, outranks

BRANCH_ROUNDS = 64  # that another branch may be long, for a member that stood on the one that was undone


_BUSY = (Keep, Left)  # phases in which no other head is taken


class Unshown(VerificationError):
    """The agreements between here and a head are not all at hand any more."""


def look(state: State, now: float) -> list[Action]:
    """Ask for a later head, when others say that they stand on one."""
    search = state.search
    if search.chain or isinstance(state.phase, _BUSY):
        return []
    ahead = views.ahead(state, now)
    if not ahead:
        if search.behind_since is not None:
            state.search = Search(failed=search.failed, anchor=search.anchor)
        return []
    timing = state.config.timing
    if search.behind_since is None:
        search.behind_since = now
    if search.asked:
        wake(state, search.asked_at)
        if now < search.asked_at:
            return []
        search.asked = ""
    at = max(search.retry_at, _begins_at(state, search.behind_since, ahead[0].said.round))
    if now < at:
        wake(state, at)
        return []
    if not search.queue:
        search.failed = {peer: until for peer, until in search.failed.items() if until > now}
        patience = (timing.head_soon_s, timing.head_most_s)
        search.queue = [(view.peer, most_s) for most_s, view in itertools.product(patience, ahead)]
    while search.queue:
        peer, most_s = search.queue.pop(0)
        if peer in search.failed:
            continue
        patience_s = views.patience_s(state, peer) + most_s
        search.asked, search.asked_at = peer, now + 2 * patience_s  # the answer comes or fails long before
        wake(state, search.asked_at)
        return [AskHead(peer, _since(state, ahead[0].said.epoch), patience_s)]
    search.retry_at = now + timing.search_again_s
    wake(state, search.retry_at)
    return []


def _since(state: State, epoch: int) -> int:
    """From which round on others are to show how they came to stand where they do.

    In a later epoch that may be another branch: the coordinator's word may have undone rounds that this member made.
    """
    return state.last.round if epoch <= state.last.epoch else max(state.last.round - BRANCH_ROUNDS, 0)


def _begins_at(state: State, behind_since: float, furthest: int) -> float:
    """When to ask: most of the time the missing vote is about to come; a group under way gets its time."""
    at = behind_since + (state.config.timing.behind_s if furthest <= state.round + 1 else 0.0)
    if state.is_grouped:
        since: float = state.phase.since  # type: ignore[union-attr]
        at = max(at, since + state.config.timing.look_while_busy_s + 2 * state.usual_s)
    return at


def on_head_not_shown(state: State, event: HeadNotShown, now: float) -> list[Action]:
    if event.by == state.search.asked:
        _failed(state, event.by, now, for_good=event.answered)
    return []


def _failed(state: State, peer: str, now: float, *, for_good: bool) -> None:
    search = state.search
    search.asked, search.source = "", ""
    if for_good or not any(name == peer for name, _ in search.queue):
        search.failed[peer] = now + state.config.timing.head_failed_s


def on_head_shown(state: State, event: HeadShown, now: float) -> list[Action]:
    """A member shows its head: fetch that state, which may be of a later round than it spoke of, if it follows."""
    search = state.search
    if event.by != search.asked:
        return []
    search.asked = ""
    try:
        chain = _checked(state, event)
    except Unshown:
        search.wants_anchor = True
        anchor = search.anchor
        if anchor is not None and event.since != anchor.round and outranks(Last.of(anchor), state.last):
            patience_s = views.patience_s(state, event.by) + state.config.timing.head_soon_s
            search.asked, search.asked_at = event.by, now + 2 * patience_s
            return [AskHead(event.by, anchor.round, patience_s)]
        _failed(state, event.by, now, for_good=True)
        return []
    except PotluckError:
        _failed(state, event.by, now, for_good=True)
        return []
    search.chain, search.source = chain, event.by
    head = chain[-1]
    sources = [view.peer for view in views.alive(state, now) if view.said.base == head.state and view.peer != event.by]
    follows = chain if chain[0].base == state.last.state else []
    return [Fetch(head.state, [event.by, *sources], follows)]


def _checked(state: State, event: HeadShown) -> list[Agreement]:
    """The agreements from this member's round, or the ledger's, to the head shown, each following the one before.

    Raises:
        Unshown: some of them are not here, or, from genesis on, nothing shows who may begin.
        FormatError, RefusedError: one of them does not hold, or does not follow.
    """
    chain, spec, mine = list(event.chain), state.config.spec, state.last
    is_void = word.is_void(state)
    named = None if is_void else state.word
    if not chain or not outranks(Last.of(chain[-1]), mine):
        raise VerificationError(f"it offers no later round than {mine.round}")
    if chain[-1].epoch < state.box.epoch and not is_void:
        raise VerificationError(f"it is of epoch {chain[-1].epoch}, and this member has promised in {state.box.epoch}")
    anchor = state.search.anchor
    if anchor is not None and event.since == anchor.round and outranks(Last.of(anchor), mine):
        mine = Last.of(anchor)
        if (chain[-1].round, chain[-1].state) == (mine.round, mine.state):
            return chain[-1:]
    after = [agreement for agreement in chain if agreement.round > mine.round]
    if after and (after[0].round, after[0].base) == (mine.round + 1, mine.state):
        check_chain(spec, mine, after, named)
        return after
    begins = next((n for n, item in enumerate(chain) if item.word and item.epoch > mine.epoch), 0)
    if not begins:
        raise Unshown(f"round {chain[-1].round} comes without the agreements since round {mine.round}")
    check_branch(chain[begins:], chain[begins - 1], mine, spec, named)
    return chain[begins:]


def check_chain(spec: RunSpec, last: Last, chain: Sequence[Agreement], named: Signed[Word] | None) -> None:
    """Check that each agreement follows the one before. Raises: Unshown, RefusedError."""
    if last.round == 0 and chain[0].word is None and spec.sync.rules > 1:
        raise Unshown("round 1 does not say whom the coordinator named to begin")
    succession.check_chain(chain, last, spec, named)


def lacks_anchor(state: State) -> bool:
    """Whether a round as the coordinator's ledger has it would help: others cannot show all the way from here.

    Where they stand in a later epoch, the ledger may have fewer rounds than this member has made: they are undone.
    """
    mine = state.last
    is_behind = state.ledger_round > mine.round or any(view.said.epoch > mine.epoch for view in state.views.values())
    return state.search.wants_anchor and is_behind


def on_anchored(state: State, event: Anchored, now: float) -> list[Action]:
    """A round as the coordinator's ledger has it."""
    if outranks(Last.of(event.agreement), state.last):
        state.search.anchor = event.agreement
        state.search.retry_at = min(state.search.retry_at, now)
        state.search.failed.clear()
    return []


def on_woken(state: State, event: Woken, now: float) -> list[Action]:
    """Ask at once for a later head, also those who could not give theirs."""
    search = state.search
    search.failed.clear()
    search.queue.clear()
    search.retry_at, search.asked = min(search.retry_at, now), ""
    return []


# ---- the state of a head ---------------------------------------------------------------------------------------------


def is_searched(state: State, digest: str) -> bool:
    """Whether this state is that of the head that is being fetched."""
    chain = state.search.chain
    is_completed = isinstance(state.phase, Fetching) and state.phase.state == digest
    return bool(chain) and chain[-1].state == digest and not is_completed


def on_fetched(state: State, event: Fetched, now: float) -> list[Action]:
    """Stand on the head, unless this member has gone as far meanwhile."""
    chain, state.search.chain = state.search.chain, []
    state.search.behind_since = None
    head, mine = chain[-1], state.last
    passed = [agreement.state for agreement in chain if agreement.round == mine.round]
    if (
        not outranks(Last.of(head), mine)
        or (passed and passed != [mine.state] and head.epoch == mine.epoch)
        or isinstance(state.phase, _BUSY)
    ):
        return []
    return advance(state, head, now, chain[:-1])


def on_not_fetched(state: State, event: NotFetched, now: float) -> list[Action]:
    state.search.chain = []
    _failed(state, state.search.source, now, for_good=True)
    return []
