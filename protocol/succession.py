"""What may follow what: the one rule by which a round extends a run. Members, coordinator and verifier all call it.

An agreement follows the round before when

- it is of the next round, from that round's state, and has at least `sync.min_peers` claims, at most `sync.max_group`;
- its voters speak for the majority of that round's weight, by the farewells that it carries; of round 1, for the
  majority of the beginners whom the coordinator has named and signed for (`protocol.beginners`); where it carries the
  coordinator's word on a new epoch, for the majority of those that this names (`protocol.epoch`);
- its votes and farewells are of the last round's epoch, or of that word's, which is a later one;
- they speak for the majority of its own weight, too, unless it completes a state that an earlier attempt has averaged;
- what it says that its claims count for is what `protocol.counting` makes of them and of the round before.

Waiting never replaces a majority, and neither do many members.

    >>> last = Last(41, "cd" * 32, {"a": 100, "b": 100, "c": 300})
    >>> word = Epoch(epoch=1, run="ab" * 32, round=41, state="cd" * 32, peers={"a": 1, "b": 1})
    >>> acceptors(last, None), acceptors(last, word)
    ({'a': 100, 'b': 100, 'c': 300}, {'a': 1, 'b': 1})
    >>> outranks(Last(42, "ef" * 32, epoch=1), Last(57, "01" * 32))
    True
"""

from __future__ import annotations

from collections.abc import Sequence

from protocol.agreement import Agreement
from protocol.beginners import Beginners
from protocol.counting import counted
from protocol.epoch import Epoch, Word
from protocol.errors import VerificationError
from protocol.last import Last
from protocol.majority import acceptors_after
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import Claim, Jump, Late

LARGE_RUNS = (
    3  # sync.rules from which on work waits for its turn, acceptors complete a state alone, and there are epochs
)


def decides_after(word: Word, last: Last) -> bool:
    """Whether a word is on the round after `last`, and not over."""
    if isinstance(word, Beginners):
        return last.round == 0
    return (word.round, word.state) == (last.round, last.state) and word.epoch > last.epoch


def acceptors(last: Last, word: Word | None) -> dict[str, int]:
    """Whose votes decide on the round after `last`, before farewells; none at all where nobody was named to begin.

    Args:
        word: the coordinator's, where it is known or shown; one that is on another round changes nothing.
    """
    return word.weights if word is not None and decides_after(word, last) else dict(last.weights)


def epoch_after(last: Last, word: Word | None) -> int:
    """The number that votes, promises and farewells of the round after `last` name."""
    return word.epoch if isinstance(word, Epoch) and decides_after(word, last) else last.epoch


def outranks(one: Last, other: Last) -> bool:
    """Whether a branch that ends in one round takes the place of one that ends in another: a later epoch, or longer."""
    return (one.epoch, one.round) > (other.epoch, other.round)


_HOW = {
    False: "without where it began and ended, in a run whose work is replayed",
    True: "and where it began and ended, in a run whose work is not replayed",
}


def check_claim(peer_id: str, made: Claim, last: Last, spec: RunSpec) -> None:
    """Check that a claim may be made on top of a round, whatever else is in its group.

    Raises:
        VerificationError: for another round or base; more tokens than its sequences hold; late work that was counted;
            not what a replay needs, where work is audited.
    """
    if (made.round, made.base) != (last.round + 1, last.state):
        raise VerificationError(
            f"{peer_id} claims work for another run, round or base than round {last.round + 1} from {last.state[:8]}…"
        )
    if made.tokens > made.batches * spec.data.sequence_length:
        raise VerificationError(f"{peer_id} claims {made.tokens} tokens in {made.batches} sequences: more than fit")
    if (made.trajectory is not None) != (spec.audit.share > 0):
        raise VerificationError(f"{peer_id} claims work {_HOW[made.trajectory is not None]}")
    start = made.trajectory.start if made.trajectory is not None else None
    if start is not None and start.jump is not None:
        _check_jump(peer_id, start.jump, made, spec)
    if made.late is not None:
        if spec.audit.share:
            raise VerificationError(f"{peer_id} claims late work, which cannot be replayed")
        _check_late(peer_id, made.late, last, spec)


def _check_jump(peer_id: str, jump: Jump, made: Claim, spec: RunSpec) -> None:
    before, update = jump.update, made.update
    if not spec.sync.overlap:
        raise VerificationError(f"{peer_id} claims work ahead of its base, in a run whose rounds do not overlap")
    fits = (before.codec, before.chunk_values) == (update.codec, update.chunk_values)
    if jump.after > made.batches or not fits or before.values > update.values + 1:  # fragments differ by one
        raise VerificationError(f"{peer_id} claims work ahead of its base that cannot be")


def _check_late(peer_id: str, late: Late, last: Last, spec: RunSpec) -> None:
    if peer_id in last.weights or last.round == 0:
        raise VerificationError(f"{peer_id} claims late work, and was in the round before with it")
    if late.waited is not None:
        if spec.sync.rules < LARGE_RUNS:
            raise VerificationError(
                f"{peer_id} claims work that waited for its turn, which this run's rules do not know"
            )
        if late.waited > (most := last.may_have_waited(peer_id)):
            raise VerificationError(
                f"{peer_id} claims to have waited {late.waited} rounds for its turn, and had {most}"
            )
    if (late.waited or 1) == 1 and last.base and late.base != last.base:
        raise VerificationError(f"{peer_id} claims late work from {late.base[:8]}…, expected {last.base[:8]}…")
    if late.tokens > late.batches * spec.data.sequence_length:
        raise VerificationError(
            f"{peer_id} claims {late.tokens} late tokens in {late.batches} sequences: more than fit"
        )


def check_follows(agreement: Agreement, last: Last, spec: RunSpec, named: Signed[Word] | None = None) -> None:
    """Check that an agreement, its signatures already checked, is the run's next round.

    Args:
        last: the round before.
        named: the coordinator's own word on who decides, where it is known; None: any that it has signed will do.

    Raises:
        VerificationError: it is not; with the reason.
    """
    number, sync = agreement.round, spec.sync
    if (number, agreement.base) != (last.round + 1, last.state):
        raise VerificationError(
            f"round {number} starts from state {agreement.base[:16]}…, "
            f"expected round {last.round + 1} from {last.state[:16]}…"
        )
    if not sync.min_peers <= len(agreement.claims) <= sync.max_group:
        raise VerificationError(
            f"round {number}: {len(agreement.claims)} members, expected {sync.min_peers} to {sync.max_group}"
        )
    for peer_id, made in agreement.by_peer.items():
        check_claim(peer_id, made, last, spec)
    if agreement.counts != counted(agreement.by_peer, last, spec):
        raise VerificationError(f"round {number}: the weights do not follow from the claims and the round before")
    check_rules(agreement, spec)
    check_majority(agreement, last, spec, named)


def check_rules(agreement: Agreement, spec: RunSpec) -> None:
    """Check that an agreement does without what only later rules than its run's know. Raises: VerificationError."""
    if spec.sync.rules >= LARGE_RUNS:
        return
    if agreement.completes or agreement.epoch:
        what = "completed by its acceptors alone" if agreement.completes else f"of epoch {agreement.epoch}"
        raise VerificationError(f"round {agreement.round}: {what}, which this run's rules do not know")


def check_majority(agreement: Agreement, last: Last, spec: RunSpec, named: Signed[Word] | None = None) -> None:
    """Check that an agreement's voters may decide on the round after `last`. Raises: VerificationError."""
    if last.round or spec.sync.rules > 1:
        _check_word(agreement, last, named.value if named else None)
    word = agreement.word.value if agreement.word else None
    if agreement.epoch != (expected := epoch_after(last, word)):
        raise VerificationError(f"round {agreement.round} is of epoch {agreement.epoch}, expected epoch {expected}")
    deciding = acceptors(last, word)
    farewells = {said.by: said.value.successor for said in agreement.farewells}
    strangers = agreement.voters - agreement.by_peer.keys() - acceptors_after(deciding, farewells).keys()
    if strangers:
        raise VerificationError(
            f"round {agreement.round}: {min(strangers)} voted, and has neither a claim nor a weight"
        )
    if not agreement.has_majority_of(deciding):
        held, total = sum(deciding[peer] for peer in deciding.keys() & agreement.voters), sum(deciding.values())
        raise VerificationError(
            f"round {agreement.round}: those who signed hold {held} of {total} of the weight that decides"
        )


def _check_word(agreement: Agreement, last: Last, named: Word | None) -> None:
    """Check that an agreement is by the coordinator's word where there must be one, and by no other."""
    number, word = agreement.round, agreement.word.value if agreement.word else None
    if last.round == 0 and not isinstance(word, Beginners):
        raise VerificationError("round 1 does not say whom the coordinator named to begin")
    if isinstance(word, Epoch) and not decides_after(word, last):
        raise VerificationError(
            f"round {number}: epoch {word.epoch} begins after round {word.round}, which is not the one before it, "
            f"or is over in epoch {last.epoch}"
        )
    if named is None or word == named:
        return
    if decides_after(named, last):
        what = "by the beginners that" if isinstance(named, Beginners) else "by those that"
        raise VerificationError(f"round {number} is not {what} the coordinator has named")
    if isinstance(word, Epoch) and isinstance(named, Epoch) and word.epoch == named.epoch:
        raise VerificationError(f"round {number}: another word than the coordinator has given for epoch {word.epoch}")


def check_chain(chain: Sequence[Agreement], last: Last, spec: RunSpec, named: Signed[Word] | None = None) -> Last:
    """Check that each agreement follows the one before, the first `last`; returns what the next one hangs on.

    Raises:
        VerificationError: one does not.
    """
    for agreement in chain:
        check_follows(agreement, last, spec, named)
        last = Last.of(agreement)
    return last


def check_branch(
    chain: Sequence[Agreement], begins: Agreement, mine: Last, spec: RunSpec, named: Signed[Word] | None = None
) -> Last:
    """Check that a branch takes the place of the one that somebody stands on, by the coordinator's word.

    Args:
        chain: from the first round of the epoch on.
        begins: the agreement of the round that the word is on. Where it is not one that the caller has stood on itself,
            it is believed because the word names its state, and the word's members have voted on top of it.
        mine: where the caller stands.
        named: as `check_follows` has it.

    Raises:
        VerificationError: it does not; with the reason.
    """
    if not chain or not isinstance(chain[0].word.value if chain[0].word else None, Epoch):
        raise VerificationError("a branch begins with the coordinator's word on a new epoch")
    end = check_chain(chain, Last.of(begins), spec, named)
    if not outranks(end, mine):
        raise VerificationError(
            f"round {end.round} of epoch {end.epoch} does not outrank round {mine.round} of epoch {mine.epoch}"
        )
    return end
