"""The chain of checkpoints back to genesis: every ancestor verified too, and each link between them.

Used by `verify.verify_checkpoint` when the folder of checkpoints is at hand. Parents are found by payload digest, not
by name. What only the whole history can show is checked here: that each round follows the one before
(`protocol.succession`), that the ledger was only ever appended to, that nobody is named with more work than was
agreed, that what the run does not train is as it was. The agreements of the rounds between two checkpoints lie in
`rounds/` beside the step folders; the members' signatures are all that they need. Every round counts up to its
checkpoint: what is not at hand is not checked, and then nobody is told yes.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from protocol import checkpoint, files
from protocol.agreement import MAX_AGREEMENT_BYTES, Agreement
from protocol.errors import FormatError, InputError, PotluckError, VerificationError
from protocol.inspection import Inspection, inspect, refuse
from protocol.model_signature import ModelSignature
from protocol.report import KEY_CHECK, NotChecked
from protocol.run_card import RunCard
from protocol.safetensors_file import same_values
from protocol.succession import Last, check_follows

MAX_CHECKPOINTS = 100_000


@dataclass(frozen=True)
class Folder:
    """The checkpoints at hand."""

    found: dict[str, Path]  # payload digest -> step folder
    unusable: list[str]  # step folders that are links, or whose model.sig cannot be read
    rounds: Path  # where the agreements of the rounds lie; need not be there


def folder_of(step_dir: Path) -> Path | None:
    """The folder of checkpoints that a step folder lies in: its parent, if that has other step folders or `rounds/`."""
    step_dir = step_dir.resolve()
    try:
        others = {path.name for path in step_dir.parent.iterdir()} - {step_dir.name}
    except OSError:
        return None
    beside = any(name == checkpoint.ROUNDS or checkpoint.step_round(name) is not None for name in others)
    return step_dir.parent if beside else None


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
    result = Folder({}, [], folder / checkpoint.ROUNDS)
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
        NotChecked: a parent is not at hand.
        VerificationError: a parent is refused, or the chain does not lead back to genesis.
    """
    chain = [seen]
    while True:
        info = chain[-1].info
        if info is None:
            raise NotChecked("needs a sound checkpoint.json")
        if info.round == 0:
            return chain[::-1]
        if info.parent is None:
            raise VerificationError(f"{chain[-1].step_dir.name}: names no parent, and is not genesis")
        if info.parent not in at_hand.found:
            unusable = f" ({'; '.join(at_hand.unusable[:5])})" if at_hand.unusable else ""
            raise NotChecked(
                f"{chain[-1].step_dir.name}: its parent {info.parent[:16]}… "
                f"is not in the folder of checkpoints{unusable}"
            )
        parent = inspect(at_hand.found[info.parent], trusted={seen.report.fingerprint or ""})
        _check_sound(parent, seen)
        if parent.info is None or parent.info.round >= info.round:
            raise VerificationError(f"{chain[-1].step_dir.name}: its parent is of the same round or a later one")
        chain.append(parent)


def agreed_rounds(chain: list[Inspection], rounds: Path) -> list[Agreement]:
    """The agreements of all rounds from the first to the checkpoint's, each checked signature by signature.

    Raises:
        NotChecked: one is not at hand.
        VerificationError: one does not hold, or `rounds` and a checkpoint show two states for one round.
    """
    card, info = chain[-1].card, chain[-1].info
    if card is None or info is None:
        raise NotChecked("needs the run card and checkpoint.json, which do not hold")
    published = {item.info.round: item.agreement for item in chain if item.info is not None and item.info.round}
    lying = {number: path for number, path in rounds_at_hand(rounds).items() if number <= info.round}
    found = []
    for number in sorted(published.keys() | lying.keys()):
        agreement = published.get(number)
        if number in published and agreement is None:
            raise NotChecked(f"needs the members' agreement of round {number}, which does not hold")
        if number in lying:
            agreement = _read_round(lying[number], number, card, agreement)
        if agreement is not None:
            found.append(agreement)
    if len(found) < info.round:
        raise NotChecked(_missing(found, info.round, rounds))
    return found


def _missing(found: list[Agreement], last: int, rounds: Path) -> str:
    """Which of the rounds 1 to `last` are not among `found`, and why."""
    count, name = last - len(found), rounds.name
    first = next(number for number, item in enumerate([*found, None], 1) if item is None or item.round != number)
    if rounds.is_symlink():
        why = f"{name}/ is a link, which is not followed"
    elif not rounds.is_dir():
        why = f"there is no {name}/ beside the checkpoints"
    else:
        why = f"{name}/ lacks {checkpoint.round_name(first)}" + (" and others" if count > 1 else "")
    return f"the members' agreements of {count} of {last} rounds are not at hand: {why}"


def rounds_at_hand(rounds: Path) -> dict[int, Path]:
    """Round -> the file that should hold its agreement; links are not followed."""
    if rounds.is_symlink() or not rounds.is_dir():
        return {}
    try:
        with os.scandir(rounds) as entries:
            files_there = [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError as error:
        raise NotChecked(f"{rounds.name}/ cannot be read: {error.strerror}") from error
    numbers = {path: checkpoint.round_number(path.name) for path in files_there}
    return {number: path for path, number in numbers.items() if number}


def _read_round(path: Path, number: int, card: RunCard, published: Agreement | None) -> Agreement:
    """The agreement in a file, held against the one in the round's checkpoint, if it has one."""
    name = f"{path.parent.name}/{path.name}"
    try:
        data = files.read_bounded(path, MAX_AGREEMENT_BYTES)
        if published is not None and published.to_bytes() == data:
            return published
        agreement = Agreement.from_bytes(data, run=card.run, membership_key=card.member_key)
    except PotluckError as error:
        raise VerificationError(f"{name}: {error.message}") from error
    if agreement.round != number:
        raise VerificationError(f"{name}: is of round {agreement.round}")
    if published is not None and (agreement.state, agreement.weights) != (published.state, published.weights):
        raise VerificationError(f"{name}: another agreement than the checkpoint of that round holds")
    return published or agreement


def check_links(chain: list[Inspection], agreements: list[Agreement]) -> str:
    """Each round follows the one before: its state, its weights, its majority."""
    card = chain[-1].card
    if card is None:
        raise NotChecked("needs the run card, which does not hold")
    states = {item.info.round: item.info.state.digest for item in chain if item.info is not None}
    last = Last(0, states[0])
    for agreement in agreements:
        check_follows(agreement, last, card.spec)
        if states.get(agreement.round, agreement.state) != agreement.state:
            raise VerificationError(f"round {agreement.round}: the checkpoint holds another state than was agreed")
        last = Last.of(agreement)
    return (
        f"{len(agreements)} rounds, each agreed on by those who may decide, from the state that the one before ended in"
    )


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


def check_contributors(chain: list[Inspection], agreements: list[Agreement]) -> str:
    """Nobody is named with more work than the agreements show."""
    info = chain[-1].info
    if info is None:
        raise NotChecked("needs a sound checkpoint.json")
    tokens, flops, rounds = Counter[str](), Counter[str](), Counter[str]()
    for agreement in agreements:
        tokens.update(agreement.weights)
        flops.update({peer_id: claim.flops for peer_id, claim in agreement.by_peer.items()})
        rounds.update(agreement.weights.keys())
    for named in info.contributors:
        stated = (named.tokens, named.flops, named.rounds)
        agreed = (tokens[named.peer_id], flops[named.peer_id], rounds[named.peer_id])
        if any(more > most for more, most in zip(stated, agreed, strict=True)):
            raise VerificationError(
                f"{named.peer_id} is named with {stated[0]} tokens, {stated[1]} FLOPs, {stated[2]} rounds; "
                f"agreed were {agreed[0]}, {agreed[1]}, {agreed[2]}"
            )
    return f"{len(info.contributors)} contributors, none with more than was agreed"


def check_untrained(chain: list[Inspection]) -> str:
    """What the run says is not trained, buffers or towers for images, is to the bit what the genesis holds."""
    genesis, seen, card = chain[0].weights, chain[-1].weights, chain[-1].card
    if genesis is None or seen is None or card is None:
        raise NotChecked("needs the run card and the weights, which do not hold")
    exact = set(card.spec.model.untrained)
    beginnings = tuple(name for name in exact if name.endswith("."))
    still = [tensor for tensor in seen.tensors if tensor.name in exact or tensor.name.startswith(beginnings)]
    before = {tensor.name: tensor for tensor in genesis.tensors}
    refuse(
        [
            f"the tensor {tensor.name[:80]!r} is not trained in this run, and is not what the genesis holds"
            for tensor in still
            if tensor.name not in before or not same_values(tensor, before[tensor.name])
        ]
    )
    return f"{len(still)} tensors that are not trained, each as in the genesis"


def _check_sound(parent: Inspection, seen: Inspection) -> None:
    name = parent.step_dir.name
    for check in parent.report.refusals:
        if check.name == KEY_CHECK:
            raise VerificationError(f"{name}: signed by another key, {parent.report.fingerprint}")
        raise VerificationError(f"{name}: {check.name}: {check.detail}")
    if parent.info is None or seen.info is None or parent.info.run != seen.info.run:
        raise VerificationError(f"{name}: of another run")


def note_later(seen: Inspection, at_hand: Folder) -> list[str]:
    """What lies at hand and says that it came after `seen`, in words for a person; nothing of it is checked."""
    info, notes = seen.info, list[str]()
    if info is None:
        return notes
    named = sorted(((checkpoint.step_round(path.name) or 0, path) for path in at_hand.found.values()), reverse=True)
    for number, path in named:
        if number <= info.round:
            break
        try:
            other = checkpoint.read_info(path)
        except (FormatError, VerificationError):
            continue
        if other.run == info.run and other.round > info.round:
            notes.append(f"{path.name} lies beside it and says that it is a later checkpoint of this run")
            break
    last = max(rounds_at_hand(at_hand.rounds), default=0)
    if not notes and last > info.round:
        notes.append(f"{at_hand.rounds.name}/ goes on to round {last}: there may be a later checkpoint")
    return notes
