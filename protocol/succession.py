"""What may follow what: the one rule by which a round extends a run. Members, coordinator and verifier all call it.

An agreement follows the round before when

- it is of the next round, from that round's state, and has at least `sync.min_peers` claims, at most `sync.max_group`;
- its voters speak for the majority of that round's weight, by the farewells that it carries; of round 1, for the
  majority of the beginners whom the coordinator has named and signed for (`protocol.beginners`);
- they speak for the majority of its own weight, too, unless it completes a state that was averaged in an earlier attempt;
- what it says that its claims count for is what `protocol.counting` makes of them and of the round before.

Waiting never replaces a majority, and neither do many members.
"""

from __future__ import annotations

from protocol.agreement import Agreement
from protocol.beginners import Beginners
from protocol.counting import counted
from protocol.errors import VerificationError
from protocol.last import Last
from protocol.majority import acceptors_after
from protocol.run_spec import RunSpec
from protocol.statements import Claim, Late

WAITING_RULES = 3  # sync.rules from which on work may wait for its turn, and acceptors may complete a state alone


def acceptors(last: Last, beginners: Beginners | None) -> dict[str, int]:
    """Whose votes decide on the round after `last`, before farewells; none at all where nobody was named."""
    if last.round == 0:
        return beginners.weights if beginners else {}
    return dict(last.weights)


def check_claim(peer_id: str, made: Claim, last: Last, spec: RunSpec) -> None:
    """Check that a claim may be made on top of a round, whatever else is in its group.

    Raises:
        VerificationError: for another round or base; more tokens than its sequences hold; late work that was counted.
    """
    if (made.round, made.base) != (last.round + 1, last.state):
        raise VerificationError(
            f"{peer_id} claims work for another run, round or base than round {last.round + 1} from {last.state[:8]}…"
        )
    if made.tokens > made.batches * spec.data.sequence_length:
        raise VerificationError(f"{peer_id} claims {made.tokens} tokens in {made.batches} sequences: more than fit")
    if made.late is not None:
        _check_late(peer_id, made.late, last, spec)


def _check_late(peer_id: str, late: Late, last: Last, spec: RunSpec) -> None:
    if peer_id in last.weights or last.round == 0:
        raise VerificationError(f"{peer_id} claims late work, and was in the round before with it")
    if late.waited is not None:
        if spec.sync.rules < WAITING_RULES:
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


def check_rules(agreement: Agreement, spec: RunSpec) -> None:
    """Check that an agreement does without what only later rules than its run's know. Raises: VerificationError."""
    if agreement.completes and spec.sync.rules < WAITING_RULES:
        raise VerificationError(
            f"round {agreement.round}: completed by its acceptors alone, which this run's rules do not know"
        )


def check_follows(agreement: Agreement, last: Last, spec: RunSpec, named: bytes | None = None) -> None:
    """Check that an agreement, its signatures already checked, is the run's next round.

    Args:
        last: the round before.
        named: the coordinator's own word on the beginners, where it is known; None: any that it has signed will do.

    Raises:
        VerificationError: it is not; with the reason.
    """
    number, sync = agreement.round, spec.sync
    if (number, agreement.base) != (last.round + 1, last.state):
        raise VerificationError(
            f"round {number} starts from state {agreement.base[:16]}…, "
            f"expected round {last.round + 1} from {last.state[:16]}…"
        )
    if agreement.epoch != last.epoch:
        raise VerificationError(f"round {number} is of epoch {agreement.epoch}, expected epoch {last.epoch}")
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


def check_majority(agreement: Agreement, last: Last, spec: RunSpec, named: bytes | None = None) -> None:
    """Check that an agreement's voters may decide on the round after `last`. Raises: VerificationError."""
    word = agreement.beginners
    if last.round == 0 and spec.sync.rules > 1:
        if word is None:
            raise VerificationError("round 1 does not say whom the coordinator named to begin")
        if named is not None and named != word.data:
            raise VerificationError("round 1 is not by the beginners that the coordinator has named")
    deciding = acceptors(last, word.value if word else None)
    farewells = {said.by: said.value.successor for said in agreement.farewells}
    strangers = agreement.voters - agreement.by_peer.keys() - acceptors_after(deciding, farewells).keys()
    if strangers:
        raise VerificationError(
            f"round {agreement.round}: {min(strangers)} voted, and has neither a claim nor a weight"
        )
    if not agreement.has_majority_of(deciding):
        held = sum(weight for peer, weight in deciding.items() if peer in agreement.voters)
        raise VerificationError(
            f"round {agreement.round}: those who signed hold {held} of {sum(deciding.values())} of the weight that decides"
        )
