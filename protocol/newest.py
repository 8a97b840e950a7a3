"""Whether a checkpoint is the newest of its run: no signature can say that nothing came later, so somebody is asked.

`potluck verify --newest-by` makes one of these rules and hands it to `verify.verify_checkpoint`. A ledger head, signed
by the run's ledger, shows how many entries there are after the checkpoint's own; what they are it does not show. The
coordinator of an invite names what it has published, and proves that its ledger still begins with the checkpoint's. The
caller brings the connection: nothing here opens one.

    rule = by_head(head_note_in(path.read_bytes()))
    rule = by_coordinator(invite, ask)               ask(size) -> RunNow, over the connection that the invite pins
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from protocol import merkle, note, tlog_proof
from protocol.errors import FormatError, PotluckError, SignatureError, VerificationError
from protocol.inspection import Inspection
from protocol.invite import Invite
from protocol.note import LedgerHead
from protocol.receipt import Receipt
from protocol.report import NotChecked, Outdated

Rule: TypeAlias = Callable[[Inspection], str]  # raises VerificationError, NotChecked, Outdated


@dataclass(frozen=True)
class RunNow:
    """What a coordinator says of its run; nothing of it is believed before the rule has looked at it."""

    published: dict[int, str]  # round -> payload digest
    head_note: str  # the newest ledger head, a signed note; empty: a coordinator from before it showed one
    consistency: tuple[bytes, ...] = ()  # that this ledger extends the one that was asked about


def head_note_in(data: bytes) -> str:
    """The ledger head in a file: a signed note, a log proof (model.tlog-proof), or a receipt.

    Raises:
        FormatError: none of these.
    """
    text = data.decode(errors="replace")
    if text.startswith("{"):
        text = Receipt.from_bytes(data).proof
    if text.startswith(tlog_proof.MAGIC):
        return tlog_proof.LogProof.from_text(text).head_note
    LedgerHead.from_text(text.rpartition("\n\n")[0] + "\n")
    return text


def by_head(head_note: str) -> Rule:
    """The rule that holds a checkpoint against a ledger head, which its caller has from elsewhere."""

    def rule(seen: Inspection) -> str:
        proof, mine, ledger_key = _ledger_of(seen)
        try:
            head = note.open_head(head_note, ledger_key)
        except (FormatError, SignatureError) as error:
            raise VerificationError(f"the ledger head is not of this checkpoint's run: {error.message}") from error
        _check_one_history(seen, head)
        if head.size < mine.size:
            raise NotChecked(
                f"the ledger head of {head.size} leaves is older "
                f"than the one of {mine.size} that came with the checkpoint"
            )
        after = head.size - proof - 1
        if after:
            raise NotChecked(
                f"{after} {'entry' if after == 1 else 'entries'} in the ledger came after this checkpoint's; "
                "only the coordinator can say whether a newer checkpoint is among them"
            )
        return f"the last entry of a ledger of {head.size} leaves"

    return rule


def by_coordinator(invite: Invite, ask: Callable[[int], RunNow]) -> Rule:
    """The rule that asks a run's coordinator.

    Args:
        invite: names the run and its root key.
        ask: what the coordinator says to who knows a ledger of so many leaves; its errors leave the question open.
    """

    def rule(seen: Inspection) -> str:
        info, signature, root = seen.info, seen.signature, seen.report.fingerprint
        _, mine, _ = _ledger_of(seen)
        if info is None or signature is None:
            raise NotChecked("needs checkpoint.json and the signature, which do not hold")
        if (info.run, root) != (invite.run, invite.root):
            raise VerificationError(
                f"the invite is for run {invite.run[:16]}… of the key {invite.root[:16]}…, this checkpoint is of run "
                f"{info.run[:16]}…, signed by {(root or '')[:16]}…"
            )
        try:
            now = ask(mine.size)
        except PotluckError as error:
            raise NotChecked(f"the coordinator could not be asked: {error.message}") from error
        leaves = _check_growth(seen, now) if now.head_note else None
        _check_published(info.round, signature.payload_digest, now.published)
        if leaves is None:
            raise NotChecked("the coordinator shows no signed ledger head: it is of an older version")
        return f"the newest that the coordinator has published; its ledger of {leaves} leaves begins with this one's"

    return rule


def _ledger_of(seen: Inspection) -> tuple[int, LedgerHead, str]:
    """The checkpoint's leaf, the head that its proof leads to, and the ledger's verifier key."""
    if seen.card is None or seen.proof is None or seen.proof_head is None:
        raise NotChecked("needs the run card and the log proof, which do not hold")
    return seen.proof.index, seen.proof_head, seen.card.ledger_key


def _check_one_history(seen: Inspection, other: LedgerHead) -> None:
    for mine in (seen.proof_head, seen.info.ledger.head if seen.info else None):
        if mine is not None and mine.size == other.size and mine.root != other.root:
            raise VerificationError(f"the ledger signed two different heads of {mine.size} leaves")


def _check_growth(seen: Inspection, now: RunNow) -> int:
    """That the coordinator's ledger begins with the checkpoint's; returns how many leaves it has."""
    _, mine, ledger_key = _ledger_of(seen)
    try:
        head = note.open_head(now.head_note, ledger_key)
    except FormatError as error:
        raise NotChecked(f"the coordinator's ledger head cannot be read: {error.message}") from error
    _check_one_history(seen, head)
    check_extends(mine, head, now.consistency)
    return head.size


def check_extends(old: LedgerHead, new: LedgerHead, proof: Sequence[bytes]) -> None:
    """Check that the ledger of a coordinator's head begins with the ledger of an older head.

    Raises:
        VerificationError: it is smaller, or begins otherwise, or the proof does not show it.
    """
    if new.size < old.size:
        raise VerificationError(f"the coordinator's ledger has {new.size} leaves, this one {old.size}")
    try:
        merkle.verify_consistency(old.size, new.size, old.root, new.root, proof)
    except VerificationError as error:
        raise VerificationError(f"the coordinator's ledger does not begin with this one: {error.message}") from error


def _check_published(round_number: int, payload: str, published: dict[int, str]) -> None:
    newest = max(published, default=-1)
    if newest < round_number:
        raise NotChecked(f"the coordinator names round {newest} as its newest, and this is of round {round_number}")
    if published.get(round_number) != payload:
        other = f"{published[round_number][:16]}…" if round_number in published else "none"
        raise VerificationError(
            f"of round {round_number} the coordinator has published {other}, this checkpoint is {payload[:16]}…"
        )
    if newest > round_number:
        raise Outdated(f"there is a newer one: round {newest}, payload {published[newest]}")
