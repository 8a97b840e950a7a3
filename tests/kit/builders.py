"""A small real run for tests: real keys, certificates, claims, votes, agreements, ledger and signed checkpoints.

Only the model is made up: two tensors and a config. Nothing is trained; each round's weights are drawn anew.

    run = build_run(tmp_path)                      three peers, genesis and three rounds, a checkpoint each
    run.step(3)                                    tmp_path/"checkpoints"/"step-000003"
    run.receipt(...)                               a peer's receipt
    run.resign(step_dir)                           sign a changed folder again, with the real key and a new log proof
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.run_config import RunConfig
from protocol import canonical, certificate, checkpoint, merkle, note, tlog_proof
from protocol.agreement import Agreement, group_digest
from protocol.checkpoint import CheckpointInfo, Contributor, Evaluation, LedgerState
from protocol.counting import growth_capped
from protocol.keys import PeerIdentity, RootKey, public_pem
from protocol.ledger_entry import CreditEntry, Entry, RunEntry
from protocol.receipt import make_receipt
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.safetensors_file import ADAPTER_FILE, FULL_FILE, Weights
from protocol.signed import Signed
from protocol.state import StateManifest
from protocol.statements import Claim, UpdateDigest, Vote

SHAPES = {"model.embed.weight": (8, 4), "model.norm.weight": (4,)}
NOW = 1_763_769_600  # when the fixed keys' certificates are issued, Unix seconds


def make_spec(name: str = "tiny", method: str = "full", seed: int = 0, rules: int = 1) -> RunSpec:
    """A valid run spec of a model with 36 parameters; `rules` as in `protocol.succession`."""
    config = RunConfig.model_validate(
        {
            "run": {"name": name, "seed": seed},
            "model": {"path": "model", "license": "MIT"},
            "method": {"kind": method},
            "data": {"path": "data.txt", "license": "MIT", "sequence_length": 16, "rules": 1},
            "sync": {"round_tokens": 4096, "wire": "int8", "clip": 0, "rules": rules},  # as the stored vectors have it
        }
    )
    return config.pin(
        model_digest="1" * 64,
        model_name="tiny",
        parameters=36,
        trainable=36,
        data_digest="2" * 64,
        data_size_bytes=1000,
    )


def safetensors_bytes(tensors: dict[str, tuple[tuple[int, ...], list[float]]], **header: Any) -> bytes:
    """A safetensors file, written by hand so that tests can also write wrong ones.

    Args:
        tensors: name -> (shape, values).
        header: entries that replace or join the header's.
    """
    entries: dict[str, Any] = {}
    data = b""
    for name, (shape, values) in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    encoded = json.dumps(entries | header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


@dataclass
class Run:
    """A run as its coordinator and its peers know it."""

    folder: Path
    root: RootKey
    ledger_key: Ed25519PrivateKey
    membership_key: Ed25519PrivateKey
    peers: list[PeerIdentity]
    spec: RunSpec
    method: str = "full"
    salt: str = ""  # another one draws other weights
    entries: list[Entry] = field(default_factory=list)
    tree: merkle.Tree = field(default_factory=merkle.Tree)
    agreements: dict[int, Agreement] = field(default_factory=dict)
    payloads: dict[int, str] = field(default_factory=dict)  # round -> payload digest
    card: RunCard | None = None
    card_envelope: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def trusted(self) -> set[str]:
        return {self.root.keyid}

    def step(self, round_number: int) -> Path:
        return self.checkpoints / checkpoint.step_name(round_number)

    def copy(self, folder: Path) -> Run:
        """A run with the same keys and history whose ledger and folder may be changed freely."""
        other = copy.copy(self)
        other.folder, other.entries, other.tree = folder, list(self.entries), copy.deepcopy(self.tree)
        other.agreements, other.payloads = dict(self.agreements), dict(self.payloads)
        return other

    def append(self, entry: Entry) -> int:
        self.entries.append(entry)
        return self.tree.append(merkle.leaf_hash(entry.to_bytes()))

    def head(self) -> note.LedgerHead:
        return note.LedgerHead(note.origin(self.spec.run.name, self.spec.digest), self.tree.size, self.tree.root)

    def proof(self, index: int) -> tlog_proof.LogProof:
        head = self.head()
        return tlog_proof.make(self.tree, index, head, note.sign_head(head, self.ledger_key))

    def receipt(self, index: int) -> bytes:
        """The receipt for ledger leaf `index`."""
        return make_receipt(
            run_card=self.card_envelope,
            root_public_key=public_pem(self.root.public_key).decode(),
            entry=self.entries[index],
            proof=self.proof(index),
        )

    def certificate(self, peer: PeerIdentity, key: Ed25519PrivateKey | None = None) -> str:
        issuer = self.membership_key if key is None else key
        return certificate.issue(issuer, run=self.spec.digest, peer_id=peer.peer_id, lifetime_s=3600, now=NOW)

    def make_claims(self, round_number: int, base: str, tokens: list[int], **changes: Any) -> list[Signed[Claim]]:
        """Each peer's signed claim; `changes` replace fields of the first peer's."""
        result = []
        for index, (peer, count) in enumerate(zip(self.peers, tokens, strict=False)):
            fields: dict[str, Any] = {
                "run": self.spec.digest,
                "round": round_number,
                "base": base,
                "tokens": count,
                "flops": 6 * 36 * count,
                "first_batch": 0,
                "batches": count // 16,
                "update": UpdateDigest(
                    root=canonical.sha256_hex(b"%d %d" % (round_number, index)),
                    values=36,
                    chunk_values=262144,
                    codec="fp32",
                ),
            }
            result.append(Claim(**(fields | (changes if index == 0 else {}))).sign(peer))
        return result

    def make_votes(self, claims: list[Signed[Claim]], round_number: int, base: str, state: str) -> list[Signed[Vote]]:
        vote = Vote(
            run=self.spec.digest,
            round=round_number,
            attempt=0,
            group=group_digest(claims),
            base=base,
            state=state,
        )
        return [vote.sign(peer) for peer in self.peers]

    def previous_weights(self, round_number: int) -> dict[str, int]:
        before = self.agreements.get(round_number - 1)
        return dict(before.weights) if before else {}

    def agreement_json(
        self, claims: list[Signed[Claim]], votes: list[Signed[Vote]], round_number: int
    ) -> dict[str, Any]:
        worths = {item.by: item.value.worth for item in claims}
        return {
            "claims": [json.loads(item.data) for item in claims],
            "votes": [json.loads(item.data) for item in votes],
            "certificates": {peer.peer_id: self.certificate(peer) for peer in self.peers},
            "weights": growth_capped(worths, self.previous_weights(round_number)),
        }

    def open_agreement(self, value: dict[str, Any]) -> Agreement:
        return Agreement.from_json(value, run=self.spec.digest, membership_key=self.membership_key.public_key())

    def state_of(self, step_dir: Path, round_number: int) -> StateManifest:
        """The manifest of the weights that lie in a step's model folder."""
        model = step_dir / checkpoint.MODEL
        weights = Weights.open(model, [path.name for path in model.iterdir()])
        return StateManifest(round=round_number, tensors=weights.layout, parameters=weights.state_root())

    def write_model(self, step_dir: Path, round_number: int) -> None:
        """Weights drawn anew, a config, a model card and a licence."""
        model = step_dir / checkpoint.MODEL
        model.mkdir(parents=True)
        draw = random.Random(f"{self.spec.digest} {round_number}{self.salt}")
        tensors = {name: (shape, [draw.gauss(0, 1) for _ in range(_count(shape))]) for name, shape in SHAPES.items()}
        lora = self.method == "lora"
        (model / (ADAPTER_FILE if lora else FULL_FILE)).write_bytes(safetensors_bytes(tensors))
        config = {"peft_type": "LORA", "r": 16} if lora else {"model_type": "llama", "hidden_size": 4}
        (model / ("adapter_config.json" if lora else "config.json")).write_text(json.dumps(config))
        (model / "README.md").write_text("A model of 36 parameters.\n")
        (model / "LICENSE").write_text("MIT\n")

    def contributors(self, up_to: int) -> tuple[Contributor, ...]:
        done: dict[str, list[int]] = {}
        for number in range(1, up_to + 1):
            agreed = self.agreements[number]
            for peer_id, weight in agreed.weights.items():
                sums = done.setdefault(peer_id, [0, 0, 0])
                sums[0] += weight
                sums[1] += agreed.by_peer[peer_id].flops
                sums[2] += 1
        return tuple(
            Contributor(peer_id=peer_id, tokens=tokens, flops=flops, rounds=rounds)
            for peer_id, (tokens, flops, rounds) in sorted(done.items())
        )

    def publish(self, round_number: int, agreement: dict[str, Any] | None, state: StateManifest) -> Path:
        """Write, sign and log the checkpoint of a round whose model files lie there."""
        step_dir = self.step(round_number)
        parent_round = max((number for number in self.payloads if number < round_number), default=None)
        parent = None if parent_round is None else checkpoint.read_info(self.step(parent_round)).ledger
        head = self.head()
        info = CheckpointInfo(
            run=self.spec.digest,
            run_card=self.card_envelope,
            root_public_key=checkpoint.root_pem(self.root),
            round=round_number,
            parent=None if parent_round is None else self.payloads[parent_round],
            state=state,
            agreement=agreement,
            evaluation=Evaluation(held_out_loss=3.0 - 0.1 * round_number, sequences=4, tokens=64),
            contributors=self.contributors(round_number),
            ledger=LedgerState.of(self.tree, head, parent),
        )
        checkpoint.write_info(step_dir, info, note.sign_head(head, self.ledger_key))
        self.payloads[round_number] = checkpoint.sign_checkpoint(step_dir, self.root)
        self.log(step_dir)
        return step_dir

    def log(self, step_dir: Path) -> None:
        """Append a signed step's entry to the ledger and write its proof."""
        checkpoint.write_log_proof(step_dir, self.proof(self.append(checkpoint.entry(step_dir))))

    def resign(self, step_dir: Path, key: RootKey | None = None) -> None:
        """Sign a changed folder again and log it."""
        checkpoint.sign_checkpoint(step_dir, self.root if key is None else key)
        self.log(step_dir)

    def genesis(self) -> None:
        """Round 0: the run card, the first leaf, the first checkpoint."""
        self.write_model(self.step(0), 0)
        state = self.state_of(self.step(0), 0)
        self.card = RunCard(
            run=self.spec.digest,
            spec=self.spec,
            genesis=state.digest,
            ledger_key=note.verifier_key(self.head().origin, self.ledger_key.public_key()),
            membership_key=self.membership_key.public_key().public_bytes_raw().hex(),
        )
        self.card_envelope = json.loads(self.card.sign(self.root).to_bytes())
        self.append(RunEntry(run=self.spec.digest, genesis=state.digest, root_key=self.root.keyid))
        self.publish(0, None, state)

    def round(self, number: int, publish: bool = True) -> None:
        """One round: claims, votes, agreement, credit, and a checkpoint."""
        base = self.card.genesis if number == 1 else self.agreements[number - 1].state
        self.write_model(self.step(number), number)
        state = self.state_of(self.step(number), number)
        claims = self.make_claims(number, base, [1024 * (index + 1) for index in range(len(self.peers))])
        votes = self.make_votes(claims, number, base, state.digest)
        value = self.agreement_json(claims, votes, number)
        agreement = self.agreements[number] = self.open_agreement(value)
        for item in claims:
            self.append(
                CreditEntry(
                    run=self.spec.digest,
                    round=number,
                    peer_id=item.by,
                    tokens=agreement.weights[item.by],
                    flops=item.value.flops,
                    claim=item.digest,
                    state=state.digest,
                )
            )
        if publish:
            self.publish(number, agreement.to_json(), state)
        else:
            shutil.rmtree(self.step(number))


def fixed_root_key(number: int = 1) -> RootKey:
    """A P-256 key that is the same in every test run."""
    return RootKey(ec.derive_private_key(number, ec.SECP256R1()))


def fixed_ed25519(label: str) -> Ed25519PrivateKey:
    """An Ed25519 key that is the same in every test run."""
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(canonical.sha256_hex(label.encode())))


def make_run(folder: Path, *, name: str = "tiny", method: str = "full", peers: int = 3, keys: int = 1) -> Run:
    """A run before its genesis; `keys` chooses another set of fixed keys."""
    return Run(
        folder=folder,
        root=fixed_root_key(keys),
        ledger_key=fixed_ed25519(f"ledger {keys}"),
        membership_key=fixed_ed25519(f"membership {keys}"),
        peers=[PeerIdentity(fixed_ed25519(f"peer {keys} {index}")) for index in range(peers)],
        spec=make_spec(name, method),
        method=method,
    )


def build_run(folder: Path, *, rounds: int = 3, every: int = 1, **options: Any) -> Run:
    """A run of `rounds` rounds with a signed checkpoint after every so many; options as `make_run`."""
    run = make_run(folder, **options)
    run.genesis()
    for number in range(1, rounds + 1):
        run.round(number, publish=number % every == 0)
    return run


def edit_info(step_dir: Path, **changes: Any) -> None:
    """Replace top-level fields of a step's checkpoint.json."""
    path = step_dir / checkpoint.MODEL / checkpoint.INFO
    path.write_bytes(canonical.dumps(json.loads(path.read_bytes()) | changes))


def _count(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
