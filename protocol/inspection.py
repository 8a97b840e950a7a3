"""The checks of one checkpoint folder, each a rule that says what it checked or refuses.

`verify` runs them in the order of `inspect`; `lineage` runs them on every ancestor. Later rules use what earlier ones
established and are "not checked" where that is missing. Nothing in the folder is believed before the rule that checks
it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from protocol import checkpoint, files, note, receipt
from protocol.agreement import Agreement
from protocol.checkpoint import CheckpointInfo
from protocol.errors import VerificationError
from protocol.keys import fingerprint
from protocol.ledger_entry import CheckpointEntry
from protocol.model_signature import ModelSignature
from protocol.note import LedgerHead
from protocol.report import NotChecked, Report
from protocol.run_card import RunCard
from protocol.safetensors_file import ADAPTER_FILE, Weights
from protocol.succession import check_rules
from protocol.tlog_proof import LogProof

NAMED_AT_MOST = 20  # problems spelled out in one refusal
CONFIGS = {"full": "config.json", "lora": "adapter_config.json"}
# from_pretrained may load these instead of what was signed for, some of them by running code
OTHER_WEIGHTS = (
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
    ".npz",
    ".npy",
    ".py",
    ".so",
)
_T = TypeVar("_T")


@dataclass
class Inspection:
    """One checkpoint folder, and what its checks have established so far."""

    step_dir: Path
    report: Report
    present: dict[str, Path] = field(default_factory=dict)  # relative to the step folder
    info: CheckpointInfo | None = None
    public_key: ec.EllipticCurvePublicKey | None = None  # that the checkpoint claims
    signature: ModelSignature | None = None
    card: RunCard | None = None
    agreement: Agreement | None = None
    proof: LogProof | None = None
    proof_head: LedgerHead | None = None  # the ledger that the proof leads to
    weights: Weights | None = None  # that are the state

    def check_layout(self) -> str:
        """Only what belongs in a checkpoint folder lies there."""
        self.present, problems = files.survey(self.step_dir)
        expected = {checkpoint.SIGNATURE, checkpoint.LOG_PROOF}
        for name in sorted(self.present):
            top, _, rest = name.partition("/")
            signature = top == checkpoint.MAINTAINERS and files.is_signature_name(rest)
            if name not in expected and top != checkpoint.MODEL and not signature:
                problems.append(f"{name}: does not belong in a checkpoint folder")
        expected |= {f"{checkpoint.MODEL}/{name}" for name in (checkpoint.INFO, checkpoint.LEDGER_HEAD)}
        problems += [f"{name}: missing" for name in sorted(expected - set(self.present))]
        refuse(problems)
        return f"{len(self.present)} files, no links, nothing that does not belong"

    def check_info(self) -> str:
        """checkpoint.json is one, and says which key should have signed."""
        self.info = info = checkpoint.read_info(self.step_dir)
        self.public_key = info.public_key
        self.report.facts |= {
            "run": info.run,
            "round": info.round,
            "state": info.state.digest,
            "parent": info.parent,
            "held_out_loss": info.evaluation.held_out_loss,
            "contributors": len(info.contributors),
        }
        stated = checkpoint.step_round(self.step_dir.name)
        if stated is not None and stated != info.round:
            raise VerificationError(f"the folder's name says round {stated}, checkpoint.json says {info.round}")
        return f"round {info.round} of run {info.run[:16]}…"

    def check_signature(self) -> str:
        """model.sig is by the root key that the checkpoint claims."""
        signature = ModelSignature.read(self.step_dir / checkpoint.SIGNATURE)
        self.report.facts["payload"] = signature.payload_digest
        key = _need(self.public_key, "checkpoint.json")
        signature.verify(key)
        if signature.follows_links:
            raise VerificationError("it was made of what links lead to; a checkpoint holds none")
        self.signature = signature
        note_extras(self.report, signature)
        return f"model.sig holds, by the key {fingerprint(key)}"

    def check_files(self) -> str:
        """Every file is as it was signed, and no other is there."""
        signature = _need(self.signature, "the signature")
        prefix = checkpoint.MODEL + "/"
        here = {name.removeprefix(prefix): path for name, path in self.present.items() if name.startswith(prefix)}
        refuse(signature.differences(here))
        return f"{len(here)} files, each as it was signed"

    def check_card(self) -> str:
        """The root key says which run this is, and which keys speak for it."""
        info = _need(self.info, "checkpoint.json")
        card = RunCard.open(info.run_card_bytes, _need(self.public_key, "checkpoint.json"))
        if card.run != info.run:
            raise VerificationError(
                f"checkpoint.json is of run {info.run[:16]}…, "
                f"its run card is of {card.run[:16]}… ({card.spec.run.name})"
            )
        receipt.check_ledger_name(card)
        self.card = card
        self.report.facts["name"] = card.spec.run.name
        return f"run {card.spec.run.name}, digest {card.run[:16]}…, signed by the same key"

    def check_agreement(self) -> str:
        """The members signed this state; genesis is what the run card says."""
        info, card = _need(self.info, "checkpoint.json"), _need(self.card, "the run card")
        if info.state.round != info.round:
            raise VerificationError(f"checkpoint.json is of round {info.round}, its state of {info.state.round}")
        if info.round == 0:
            if info.parent is not None or info.agreement is not None:
                raise VerificationError("genesis has neither a parent nor an agreement")
            if info.state.digest != card.genesis:
                raise VerificationError(
                    f"genesis: expected the run card's state {card.genesis[:16]}…, got {info.state.digest[:16]}…"
                )
            return "genesis: the state that the run card names"
        if info.parent is None or info.agreement is None:
            raise VerificationError(f"round {info.round} without a parent or without the members' agreement")
        agreement = Agreement.from_json(info.agreement, run=card.run, membership_key=card.member_key)
        if agreement.round != info.round:
            raise VerificationError(f"the agreement is of round {agreement.round}, the checkpoint of {info.round}")
        if agreement.state != info.state.digest:
            raise VerificationError(
                f"the members signed for state {agreement.state[:16]}…, the checkpoint holds {info.state.digest[:16]}…"
            )
        self.agreement = agreement
        check_rules(agreement, card.spec)
        voted = agreement.voters & agreement.weights.keys()
        held = sum(agreement.weights[peer_id] for peer_id in voted)
        total = sum(agreement.weights.values())
        return (
            f"{len(voted)} of {len(agreement.claims)} members, with {held} of {total} tokens, signed for this state; "
            "each holds the run's certificate"
        )

    def check_weights(self) -> str:
        """The tensors are the state, all of it and nothing else, and all finite."""
        info, card = _need(self.info, "checkpoint.json"), _need(self.card, "the run card")
        prefix = checkpoint.MODEL + "/"
        names = [name.removeprefix(prefix) for name in self.present if name.startswith(prefix)]
        other = [name for name in names if name.lower().endswith(OTHER_WEIGHTS)]
        refuse([f"{name}: weights or code that the members did not sign for" for name in other])
        kind = card.spec.method.kind
        if CONFIGS[kind] not in names:
            raise VerificationError(f"{CONFIGS[kind]}: missing; the model cannot be loaded without it")
        if kind == "full" and CONFIGS["lora"] in names:
            raise VerificationError(f"{CONFIGS['lora']}: would make loaders fetch another base model")
        if (ADAPTER_FILE in names) != (kind == "lora"):
            raise VerificationError(f"the run's method is {kind}, the weights are of the other")
        weights = Weights.open(self.step_dir / checkpoint.MODEL, names)
        if weights.layout != info.state.tensors:
            raise VerificationError(_layout_difference(weights.layout, info.state.tensors))
        root = weights.state_root()
        if root != info.state.parameters:
            raise VerificationError(
                f"the weights have the digest {root[:16]}…, expected {info.state.parameters[:16]}… from the state"
            )
        against = "the run card" if info.round == 0 else "the members' agreement"
        if info.round > 0 and self.agreement is None:
            against = "checkpoint.json alone"
        self.weights = weights
        count = info.state.parameter_count
        return f"{len(weights.tensors)} tensors, {count} values, all finite; their digest is that of {against}"

    def check_measured(self) -> str:
        """A member has signed for the held-out loss."""
        info = _need(self.info, "checkpoint.json")
        member = info.evaluation.check_measured(info.run, info.round, info.state.digest)
        self.report.facts["measured_by"] = member
        return f"{info.evaluation.held_out_loss:.4f}, measured by member {member}, whom the host named"

    def check_ledger_head(self) -> str:
        """The note in model/ledger/checkpoint is by the run's ledger."""
        info, card = _need(self.info, "checkpoint.json"), _need(self.card, "the run card")
        head = note.open_head(checkpoint.read_head_note(self.step_dir), card.ledger_key)
        if head != info.ledger.head:
            raise VerificationError(
                f"the signed ledger head has {head.size} leaves and root {head.root.hex()[:16]}…, "
                f"checkpoint.json says {info.ledger.size} and {info.ledger.root[:16]}…"
            )
        return f"{head.origin}, {head.size} leaves, signed by the run's ledger"

    def check_log_proof(self) -> str:
        """This checkpoint's payload digest is a leaf of the ledger."""
        info, card = _need(self.info, "checkpoint.json"), _need(self.card, "the run card")
        signature = _need(self.signature, "the signature")
        proof = checkpoint.read_log_proof(self.step_dir)
        entry = CheckpointEntry(
            run=info.run,
            round=info.round,
            payload=signature.payload_digest,
            state=info.state.digest,
            parent=info.parent,
        )
        try:
            head = proof.verify(entry.to_bytes(), card.ledger_key)
        except VerificationError as error:
            raise VerificationError(
                f"leaf {proof.index} is not shown to be this checkpoint: {error.message}"
            ) from error
        if proof.index < info.ledger.size:
            raise VerificationError(
                f"leaf {proof.index} is older than the ledger of {info.ledger.size} leaves inside the checkpoint"
            )
        self.proof, self.proof_head = proof, head
        return f"leaf {proof.index} of a ledger of {head.size} leaves"

    def check_maintainers(self, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> str:
        """Further maintainers' signatures, as far as their keys are at hand."""
        prefix = checkpoint.MAINTAINERS + "/"
        names = [name.removeprefix(prefix) for name in self.present if name.startswith(prefix)]
        if not names:
            raise NotChecked("no further maintainer signed")
        mine = _need(self.signature, "the signature")
        held, unknown = [], []
        for name in sorted(names):
            keyid = name.removesuffix(".sig")
            if keyid not in keys:
                unknown.append(keyid)
                continue
            other = ModelSignature.read(self.step_dir / checkpoint.MAINTAINERS / name)
            other.verify(keys[keyid])
            if other.files != mine.files:
                raise VerificationError(f"{name}: signs for other files than model.sig")
            held.append(keyid)
        if not held:
            raise NotChecked(f"signed by {', '.join(unknown[:NAMED_AT_MOST])}: give a maintainer's PEM file with --key")
        return (
            f"{len(held)} of {len(names)} further signatures hold ({', '.join(held)}); the others' keys were not given"
        )


def inspect(
    step_dir: Path, *, trusted: Collection[str], keys: Mapping[str, ec.EllipticCurvePublicKey] | None = None
) -> Inspection:
    """Run every check that needs this folder alone."""
    seen = Inspection(step_dir, Report(step_dir.name, "checkpoint"))
    rules: list[tuple[str, Callable[[], str]]] = [
        ("folder", seen.check_layout),
        ("checkpoint.json", seen.check_info),
        ("signature", seen.check_signature),
        ("files", seen.check_files),
        ("run card", seen.check_card),
        ("agreement", seen.check_agreement),
        ("weights", seen.check_weights),
        ("ledger head", seen.check_ledger_head),
        ("log proof", seen.check_log_proof),
    ]
    for name, rule in rules:
        seen.report.run(name, rule)
    if seen.info is not None and seen.info.evaluation.measured is not None:
        seen.report.run("held-out loss", seen.check_measured)
    seen.report.run("maintainers", lambda: seen.check_maintainers(keys or {}), needed=False)
    if seen.signature is not None and seen.public_key is not None:
        seen.report.confirm(fingerprint(seen.public_key), trusted)
    return seen


def _need(value: _T | None, what: str) -> _T:
    if value is None:
        raise NotChecked(f"needs {what}, which does not hold")
    return value


def note_extras(report: Report, signature: ModelSignature) -> None:
    """Say so where something stands beside a signature that nobody here looks at."""
    if signature.extras:
        report.notes.append("log entries, timestamps or further signatures beside the signature were not looked at")


def refuse(problems: list[str]) -> None:
    """Name what is wrong, as far as one line goes. Raises: VerificationError: something is."""
    if problems:
        more = len(problems) - NAMED_AT_MOST
        raise VerificationError("; ".join(problems[:NAMED_AT_MOST]) + (f"; and {more} more" if more > 0 else ""))


def _layout_difference(got: tuple, expected: tuple) -> str:
    agreed = set(expected)
    for name, shape in got:
        if (name, shape) not in agreed:
            return f"the tensor {name!r} of shape {list(shape)} is not part of the agreed state"
    missing = sorted({name for name, _ in agreed} - {name for name, _ in got})
    return f"the weights lack the agreed tensors {missing[:5]}" if missing else "the state's tensors are not sorted"
