"""The evidence of a failed audit: a folder that anyone can replay, offline, without a word of the host's.

evidence/round-000012-<end of the peer id>/
    claim.json       as its author has signed it
    head.json reveal.bin     what its author has shown (`protocol.reveal`)
    step-000000/     the run's signed genesis: the run card, the model, its tokenizer
    base-model/      LoRA only
    data             the data file, or the folder of prepared data
    rounds/          what was agreed in the rounds that its work is said to go on from

All that a replay rests on is bound to the claim, which only its author can sign, or to the run card. `keep` writes such
a folder, with links where the system allows, so that it takes little room; `verify_evidence` judges one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator import base_model
from coordinator.evaluator import Evaluator
from peer.training.dataset.shard_folder import ShardFolder
from peer.training.judge import Judgement, begins_elsewhere, judge
from peer.training.reveal import read_revealed
from protocol import checkpoint
from protocol.agreement import MAX_AGREEMENT_BYTES, Agreement
from protocol.data_spec import PinnedDataSet
from protocol.envelope import MAX_ENVELOPE_BYTES
from protocol.errors import VerificationError
from protocol.files import file_sha256, read_bounded
from protocol.keys import fingerprint
from protocol.report import EVIDENCE_KIND, Report
from protocol.reveal import MAX_REVEAL_HEAD_BYTES, RevealHead
from protocol.run_card import RunCard
from protocol.signed import Signed, open_signed
from protocol.statements import Claim
from protocol.verify import verify_checkpoint

CLAIM, HEAD, BYTES, GENESIS, BASE, DATA = "claim.json", "head.json", "reveal.bin", "step-000000", "base-model", "data"


def keep(folder: Path, claim: Signed[Claim], reveal: Path, run: Evaluator, before: Collection[Agreement]) -> Path:
    """Write the evidence against a claim; returns where it lies.

    Args:
        folder: `evidence` in the run folder.
        reveal: the folder with what was shown.
        run: whose genesis, base model and data it is about.
        before: the agreements of the rounds that its work is said to go on from.

    Raises: OSError: it cannot be written.
    """
    place = folder / f"round-{claim.value.round:06d}-{claim.by[-8:]}"
    part = place.with_name(place.name + ".part")
    for old in (part, place):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir(parents=True)
    (part / CLAIM).write_bytes(claim.data)
    for name in (HEAD, BYTES):
        _link(reveal / name, part / name)
    shutil.copytree(run.genesis_model.parent, part / GENESIS, copy_function=_link)
    if run.base_model is not None:
        shutil.copytree(run.base_model, part / BASE, copy_function=_link)
    if run.data.is_dir():
        shutil.copytree(run.data, part / DATA, copy_function=_link)
    else:
        _link(run.data, part / DATA)
    (part / checkpoint.ROUNDS).mkdir()
    for agreement in before:
        (part / checkpoint.ROUNDS / checkpoint.round_name(agreement.round)).write_bytes(agreement.to_bytes())
    os.replace(part, place)
    return place


def is_evidence(path: Path) -> bool:
    """Whether a folder looks like one of these."""
    return (path / CLAIM).is_file() and (path / HEAD).is_file()


@dataclass
class _Case:
    """What was read of a folder so far."""

    folder: Path
    card: RunCard
    claim: Signed[Claim]

    @classmethod
    def open(cls, folder: Path, card: RunCard) -> _Case:
        claim = open_signed(Claim, read_bounded(folder / CLAIM, MAX_ENVELOPE_BYTES))
        if claim.value.run != card.run or claim.value.trajectory is None:
            raise VerificationError("a claim of another run, or of one whose work is not replayed")
        return cls(folder, card, claim)

    def inputs(self) -> str:
        """Whether model and data are the run's."""
        spec, data = self.card.spec, self.folder / DATA
        if spec.method.kind == "lora" and base_model.model_digest(self.folder / BASE) != spec.model.digest:
            raise VerificationError("another base model than the run's")
        found = file_sha256(ShardFolder(data).manifest_path if isinstance(spec.data, PinnedDataSet) else data)
        if found != spec.data.digest:
            raise VerificationError("other data than the run's")
        return f"the model and the data that run {self.card.run[:16]}… is pinned to"

    def work(self, device: str) -> str:
        """Replay it. Raises: VerificationError: the claim is right."""
        claim, by = self.claim.value, self.claim.by
        head = RevealHead.from_bytes(read_bounded(self.folder / HEAD, MAX_REVEAL_HEAD_BYTES), claim)
        revealed = read_revealed(head, self.folder / BYTES, claim, by)
        base = self.folder / BASE if self.card.spec.method.kind == "lora" else None
        evaluator = Evaluator(
            self.card.spec, self.folder / GENESIS / checkpoint.MODEL, base, self.folder / DATA, device=device
        )
        found = judge(evaluator.replay, revealed)
        if found.verdict == "pass":
            found = self._start() or found
        if found.verdict == "pass":
            raise VerificationError(f"the work is what {by} has claimed: it is no reason to ban anybody")
        return f"round {claim.round}, {by}: {found.reason}"

    def _start(self) -> Judgement | None:
        """Where the work began, by the agreements that lie here."""
        trajectory = self.claim.value.trajectory
        start = trajectory.start if trajectory is not None else None
        rounds = self.folder / checkpoint.ROUNDS
        if start is None or not (rounds / checkpoint.round_name(start.round)).is_file():
            return None
        own: dict[int, Claim | None] = {}
        for path in sorted(rounds.iterdir()):
            agreement = Agreement.from_bytes(
                read_bounded(path, MAX_AGREEMENT_BYTES), run=self.card.run, membership_key=self.card.member_key
            )
            own[agreement.round] = agreement.by_peer.get(self.claim.by)
        later = sum(1 for round, made in own.items() if start.round < round < self.claim.value.round and made)
        return begins_elsewhere(self.claim.value, own.get(start.round), later)


def verify_evidence(folder: Path, trusted: Collection[str], device: str = "cpu") -> Report:
    """Judge the evidence in a folder, by replaying it: verified means that the claim was made up.

    Args:
        trusted: fingerprints of root keys that the user has confirmed.
    """
    report, found = Report(folder.name, EVIDENCE_KIND), dict[str, Any]()

    def genesis() -> str:
        info = checkpoint.read_info(folder / GENESIS)
        signed = verify_checkpoint(folder / GENESIS, trusted={fingerprint(info.public_key)}, alone=True)
        if not signed.ok:
            raise VerificationError(signed.verdict)
        found["card"] = RunCard.open(info.run_card_bytes, info.public_key)
        found["key"] = fingerprint(info.public_key)
        return f"the signed genesis of run {found['card'].run[:16]}…"

    def claim() -> str:
        case = found["case"] = _Case.open(folder, found["card"])
        value = case.claim.value
        report.facts |= {"round": value.round, "peer_id": case.claim.by, "claim": case.claim.digest}
        return f"round {value.round}, {value.tokens} tokens, signed by {case.claim.by}"

    if report.run("genesis", genesis):
        report.confirm(found["key"], trusted)
        if report.run("claim", claim) and report.run("data", found["case"].inputs):
            report.run("work", lambda: found["case"].work(device))
    return report


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
