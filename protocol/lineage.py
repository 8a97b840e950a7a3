"""The chain of checkpoints back to genesis: every ancestor verified too, and each link between them.

Used by `verify.verify_checkpoint` when the folder of checkpoints is at hand. Parents are found by payload digest, not
by name. What only two checkpoints together can show is checked here: that the members' weights follow from the round
before, that the ledger was only ever appended to, that nobody is named with more work than was agreed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from protocol import checkpoint
from protocol.errors import FormatError, InputError, PotluckError, VerificationError
from protocol.inspection import Inspection, inspect
from protocol.model_signature import ModelSignature
from protocol.report import KEY_CHECK, NotChecked

MAX_CHECKPOINTS = 100_000


@dataclass(frozen=True)
class Folder:
    """The checkpoints at hand."""

    found: dict[str, Path]  # payload digest -> step folder
    unusable: list[str]  # step folders that are links, or whose model.sig cannot be read


def find_checkpoints(folder: Path) -> Folder:
    """Look for step folders under `folder`; links are not followed.

    Raises:
        InputError: `folder` is no directory.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise InputError(f"{folder}: not a directory", "give the folder that holds the step-… folders")
    try:
        steps = sorted(path for path in folder.iterdir() if checkpoint.step_round(path.name) is not None)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}", "give a folder that you may read") from error
    result = Folder({}, [])
    for step_dir in steps[:MAX_CHECKPOINTS]:
        if step_dir.is_symlink() or not step_dir.is_dir():
            result.unusable.append(f"{step_dir.name} is a link or no folder")
            continue
        try:
            digest = ModelSignature.read(step_dir / checkpoint.SIGNATURE).payload_digest
        except (FormatError, VerificationError) as error:
            result.unusable.append(f"{step_dir.name}: {error.message}")
            continue
        result.found.setdefault(digest, step_dir)
    return result


def collect(seen: Inspection, at_hand: Folder) -> list[Inspection]:
    """The chain from genesis to `seen`, each checked on its own and by the same root key.

    Args:
        seen: the checkpoint at the end, already inspected.
        at_hand: the checkpoints among which the ancestors are.

    Raises:
        VerificationError: a parent is missing or refused, or the chain does not lead back to genesis.
    """
    chain = [seen]
    while True:
        info = chain[-1].info
        if info is None:
            raise NotChecked("needs a sound checkpoint.json")
        if info.round == 0:
            return chain[::-1]
        if info.parent is None or info.parent not in at_hand.found:
            missing = "none" if info.parent is None else f"{info.parent[:16]}…"
            unusable = f" ({'; '.join(at_hand.unusable[:5])})" if at_hand.unusable else ""
            raise VerificationError(
                f"{chain[-1].step_dir.name}: its parent {missing} is not in the folder of checkpoints{unusable}"
            )
        parent = inspect(at_hand.found[info.parent], trusted={seen.report.fingerprint or ""})
        _check_sound(parent, seen)
        if parent.info is None or parent.info.round >= info.round:
            raise VerificationError(f"{chain[-1].step_dir.name}: its parent is of the same round or a later one")
        chain.append(parent)


def check_links(chain: list[Inspection]) -> str:
    """Each agreement starts where the one before ended, with the weights that follow from it."""
    skipped = 0
    for before, after in itertools.pairwise(chain):
        if before.info is None or after.info is None or after.agreement is None:
            raise NotChecked(f"{after.step_dir.name}: needs the members' agreement, which does not hold")
        if after.info.round != before.info.round + 1:
            skipped += 1
            continue
        if after.agreement.base != before.info.state.digest:
            raise VerificationError(
                f"{after.step_dir.name}: the members worked from state {after.agreement.base[:16]}…, "
                f"its parent holds {before.info.state.digest[:16]}…"
            )
        after.agreement.check_against(before.agreement.weights if before.agreement else {})
    links = len(chain) - 1
    if skipped == links and links:
        raise NotChecked("there are rounds between the checkpoints, whose agreements are not in this folder")
    rest = f"; {skipped} not checked, for rounds lie between them" if skipped else ""
    return f"{links - skipped} of {links} agreements follow from the round before{rest}"


def check_ledgers(chain: list[Inspection]) -> str:
    """Each checkpoint's ledger begins with its parent's and holds the parent."""
    for before, after in itertools.pairwise(chain):
        if before.info is None or after.info is None or before.proof is None:
            raise NotChecked(f"{after.step_dir.name}: needs its parent's log proof, which does not hold")
        name = after.step_dir.name
        try:
            after.info.ledger.check_extends(before.info.ledger)
        except PotluckError as error:
            raise VerificationError(f"{name}: its ledger does not extend its parent's: {error.message}") from error
        if before.proof.index >= after.info.ledger.size:
            raise VerificationError(
                f"{name}: its ledger of {after.info.ledger.size} leaves does not yet hold its parent, "
                f"leaf {before.proof.index}"
            )
    roots: dict[int, bytes] = {}
    for head in [head for item in chain if item.info for head in (item.info.ledger.head, item.proof_head) if head]:
        if roots.setdefault(head.size, head.root) != head.root:
            raise VerificationError(f"the ledger signed two different heads of {head.size} leaves")
    last = chain[-1].info
    return f"each ledger begins with the one before, up to {last.ledger.size if last else 0} leaves"


def check_contributors(chain: list[Inspection]) -> str:
    """Nobody is named with more work than the agreements show."""
    info = chain[-1].info
    if info is None:
        raise NotChecked("needs a sound checkpoint.json")
    if [item.info.round if item.info else None for item in chain] != list(range(info.round + 1)):
        raise NotChecked("there are rounds between the checkpoints, whose agreements are not in this folder")
    tokens, flops, rounds = Counter[str](), Counter[str](), Counter[str]()
    for item in chain[1:]:
        if item.agreement is None:
            raise NotChecked(f"{item.step_dir.name}: needs the members' agreement, which does not hold")
        tokens.update(item.agreement.weights)
        flops.update({peer_id: claim.flops for peer_id, claim in item.agreement.claims.items()})
        rounds.update(item.agreement.weights.keys())
    for named in info.contributors:
        stated = (named.tokens, named.flops, named.rounds)
        agreed = (tokens[named.peer_id], flops[named.peer_id], rounds[named.peer_id])
        if any(more > most for more, most in zip(stated, agreed, strict=True)):
            raise VerificationError(
                f"{named.peer_id} is named with {stated[0]} tokens, {stated[1]} FLOPs, {stated[2]} rounds; "
                f"agreed were {agreed[0]}, {agreed[1]}, {agreed[2]}"
            )
    return f"{len(info.contributors)} contributors, none with more than was agreed"


def _check_sound(parent: Inspection, seen: Inspection) -> None:
    name = parent.step_dir.name
    for check in parent.report.refusals:
        if check.name == KEY_CHECK:
            raise VerificationError(f"{name}: signed by another key, {parent.report.fingerprint}")
        raise VerificationError(f"{name}: {check.name}: {check.detail}")
    if parent.info is None or seen.info is None or parent.info.run != seen.info.run:
        raise VerificationError(f"{name}: of another run")
