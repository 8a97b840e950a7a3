"""What the coordinator's tests share: a tiny real model and text, a run.toml, and identities that sign rounds."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from coordinator.host import Host
from coordinator.ledger import Ledger
from coordinator.lots import LotChain
from coordinator.reports import CommittedRound, Reports
from coordinator.store.database import Store
from peer.link.client import CoordinatorClient
from peer.training.genesis import load_state
from peer.training.quiet import no_progress_bars
from peer.training.state import SharedState
from protocol import certificate, note
from protocol.agreement import Agreement
from protocol.beginners import Beginners
from protocol.epoch import stored_word
from protocol.errors import InputError
from protocol.keys import PeerIdentity, RootKey
from protocol.ledger_entry import CreditEntry, RunEntry, parse_entry
from protocol.rpc import ReportAnswer
from protocol.run_card import RunCard
from protocol.run_spec import Audit, Credit
from protocol.status import CheckpointStatus
from tests.kit.builders import make_spec
from tests.kit.swarm import Member, Swarm

WORDS = ["the", "fire", "burns", "high", "when", "everyone", "brings", "wood", "and", "night", "is", "long"]


def write_model(folder: Path, seed: int = 0) -> Path:
    """A random Llama of two layers over words, with its tokenizer, as a transformers folder."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    with no_progress_bars():
        LlamaForCausalLM(config).save_pretrained(str(folder))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.save_pretrained(str(folder))
    (folder / "LICENSE").write_text("as free as air\n")
    return folder


def write_text(path: Path, words: int = 4000) -> Path:
    """Text with a little structure, the same each time."""
    choose = random.Random(7)
    lines = [" ".join(choose.choices(WORDS, k=8)) for _ in range(words // 8)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_run(
    folder: Path,
    *,
    rounds: int = 4,
    every: int = 2,
    lora: bool = False,
    code: str | None = "wood",
    reducer_code: str | None = None,
    max_worse: float = 0.1,
    host: str = "",
) -> Path:
    """A folder with model, text and run.toml; returns the latter. `host`: more lines of its last section."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    write_text(folder / "text.txt")
    config = folder / "run.toml"
    method = '[method]\nkind = "lora"\nrank = 2\n' if lora else ""
    config.write_text(
        f"""
[run]
name = "campfire"
rounds = {rounds}
[model]
path = "model"
license = "MIT"
[data]
path = "text.txt"
license = "CC0-1.0"
sequence_length = 16
held_out = 0.1
{method}
[sync]
round_tokens = 1000
[publish]
every_rounds = {every}
max_worse = {max_worse}
[host]
listen = "127.0.0.1:0"
swarm_listen = "127.0.0.1:0"
{f'code = "{code}"' if code else ""}
{f'reducer_code = "{reducer_code}"' if reducer_code else ""}
{host}
"""
    )
    return config


def start_host(config: Path, folder: Path) -> Host:
    """A host in this process, without a rendezvous."""
    host = Host(config, folder, rendezvous=False)
    host.start()
    return host


@dataclass
class Site:
    host: Host
    client: CoordinatorClient
    swarm: Swarm

    @property
    def folder(self) -> Path:
        return self.host.folder

    def commit(self, seed: int, scale: float = 0.001) -> SharedState:
        agreement = self.swarm.round(seed=seed, scale=scale)
        assert self.client.report(self.swarm.members[0].certificate, agreement.to_bytes()).accepted
        return self.swarm.state

    def deliver(self, round_number: int) -> CheckpointStatus:
        """Announce as a peer does, upload what is wanted, and wait until the checkpoint of a round is decided."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for item in self.host.status().checkpoints:
                if item.round == round_number:
                    return item
            self.upload_wanted()
            time.sleep(0.05)
        raise AssertionError(f"no checkpoint of round {round_number}")

    def upload_wanted(self) -> int | None:
        """Announce as a peer does, and upload what is wanted; returns its round."""
        member = self.swarm.members[0]
        offered = {state.digest: state for state in self.swarm.states.values()}
        wanted = self.client.announce(member.certificate, states=offered).want_state
        if not wanted:
            return None
        state = offered[wanted]
        pieces = (state.chunk(index) for index in range(state.chunk_count))
        self.client.upload_state(member.certificate, state.manifest(), pieces)
        return state.round


@contextmanager
def site_of(config: Path, folder: Path, swarm: Swarm | None = None) -> Iterator[Site]:
    host = start_host(config, folder)
    try:
        with CoordinatorClient(host.invite) as client:
            if swarm is None:
                genesis = load_state(folder / "checkpoints" / "step-000000" / "model")
                swarm = Swarm.joined(client, client.get_run(), genesis)
            yield Site(host, client, swarm)
    finally:
        host.stop()


@dataclass
class Office:
    """The rules behind the service over a real store, without a network: ledger, reports, a swarm to report."""

    folder: Path
    rounds: int = 0
    members: int = 3
    rules: int = 3
    min_peers: int = 1
    hold: int = 0  # rounds that credit is on hold
    audit: Audit = field(default_factory=Audit)

    def __post_init__(self) -> None:
        base = make_spec("campfire", rules=self.rules)
        run = base.run.model_copy(update={"rounds": self.rounds})
        sync = base.sync.model_copy(update={"min_peers": self.min_peers})
        credit = Credit(hold_rounds=self.hold)
        self.spec = base.model_copy(update={"run": run, "sync": sync, "credit": credit, "audit": self.audit})
        self.chain = LotChain(bytes(32), self.rounds or 100) if self.audit.share else None
        self.ledger_key, self.membership_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.root = RootKey(ec.generate_private_key(ec.SECP256R1()))
        genesis = SharedState(0, (("w", (8,)),), torch.arange(8.0))
        origin = note.origin("campfire", self.spec.digest)
        self.card = RunCard(
            run=self.spec.digest,
            spec=self.spec,
            genesis=genesis.digest,
            ledger_key=note.verifier_key(origin, self.ledger_key.public_key()),
            membership_key=self.membership_key.public_key().public_bytes_raw().hex(),
            audit_chain=self.chain.link(0) if self.chain is not None else None,
        )
        self.committed: list[CommittedRound] = []
        self.swarm = Swarm(self.spec, [self.member() for _ in range(self.members)], genesis)
        self.named = stored_word(self.word(self.swarm.members))
        self.swarm.beginners = self.named.data if self.rules > 1 else b""
        self.open()

    def word(self, members: Iterable[Member], key: Ed25519PrivateKey | None = None) -> bytes:
        """The coordinator's word that these begin."""
        peers = tuple(member.peer_id for member in members)
        return Beginners(run=self.card.run, peers=peers).sign(PeerIdentity(key or self.membership_key)).data

    def open(self) -> None:
        """Open the store, as a start does."""
        self.ledger = open_ledger(self.folder, self.ledger_key, self.card, self.root)
        self.store = self.ledger.store
        self.reports = Reports(self.ledger, self.card, self.committed.append, lambda: self.named, self.chain)

    def reopen(self) -> None:
        """Close and open it again, as a restart does."""
        self.close()
        self.open()

    def close(self) -> None:
        self.store.close()

    def member(self) -> Member:
        identity = PeerIdentity.generate()
        token = certificate.issue(self.membership_key, run=self.card.run, peer_id=identity.peer_id, lifetime_s=3600)
        return Member(identity, token)

    def submit(self, agreement: Agreement, by: Member | None = None) -> ReportAnswer:
        return self.reports.submit(agreement.to_bytes(), (by or self.swarm.members[0]).peer_id)

    def credits(self) -> list[tuple[int, str]]:
        """(round, peer id) of every credit leaf in the ledger, in the ledger's order."""
        entries = [parse_entry(self.ledger.entry(index)) for index in range(self.ledger.size)]
        return [(entry.round, entry.peer_id) for entry in entries if isinstance(entry, CreditEntry)]

    def expected_credits(self, rounds: Iterable[int]) -> list[tuple[int, str]]:
        return [(number, member.peer_id) for number in rounds for member in self.swarm.members]


def open_ledger(folder: Path, key: Ed25519PrivateKey, card: RunCard, root: RootKey) -> Ledger:
    store = Store(folder / "ledger.db")
    first = RunEntry(run=card.run, genesis=card.genesis, root_key=root.keyid)
    try:
        return Ledger(store, key, note.origin(card.spec.run.name, card.run), first)
    except InputError:
        store.close()
        raise
