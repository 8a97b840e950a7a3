"""What a community of light members is; each of its processes makes the same run, keys and members of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.run_config import RunConfig
from peer.training.state import SharedState
from peer.training.update import Update
from protocol import certificate, note
from protocol.beginners import Beginners
from protocol.disk import write_file
from protocol.keys import PeerIdentity
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec

SEQUENCE_TOKENS = 16
CERTIFICATE_S = 24 * 3600


@dataclass(frozen=True)
class Plan:
    """A community, before anything of it runs."""

    members: int
    max_group: int
    rounds: int
    round_s: float  # of work
    step_s: float = 0.25  # that a member sleeps for what would be a micro-batch
    values: int = 4096  # fp32, of the update: 16 kB
    slower: float = 1.0  # the members' clock goes so many times slower than ours: `lab.light.clock`

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return cls(**json.loads(text))

    @functools.cached_property
    def spec(self) -> RunSpec:
        config = RunConfig.model_validate(
            {
                "run": {"name": "light", "rounds": self.rounds},
                "model": {"path": "none", "license": "MIT"},
                "data": {"path": "none", "license": "MIT", "sequence_length": SEQUENCE_TOKENS, "rules": 2},
                "sync": {"round_seconds": self.round_s, "wire": "fp32", "max_group": self.max_group, "rules": 3},
            }
        )
        return config.pin(
            model_digest="1" * 64,
            model_name="none",
            parameters=self.values,
            trainable=self.values,
            data_digest="2" * 64,
            data_size_bytes=1000,
        )

    @functools.cached_property
    def genesis(self) -> SharedState:
        return SharedState(0, (("w", (self.values,)),), torch.zeros(self.values))

    @functools.cached_property
    def card(self) -> RunCard:
        ledger = note.origin(self.spec.run.name, self.spec.digest)
        return RunCard(
            run=self.spec.digest,
            spec=self.spec,
            genesis=self.genesis.digest,
            ledger_key=note.verifier_key(ledger, _key("ledger").public_key()),
            membership_key=_key("membership").public_key().public_bytes_raw().hex(),
        )

    def beginners(self) -> bytes:
        """The coordinator's word: the first member begins."""
        return (
            Beginners(run=self.card.run, peers=(self.identity(0).peer_id,)).sign(PeerIdentity(_key("membership"))).data
        )

    # ---- one member --------------------------------------------------------------------------------------------------

    def identity(self, index: int) -> PeerIdentity:
        return PeerIdentity(_key(f"member {index}"))

    def identity_file(self, index: int, folder: Path) -> Path:
        """Where p2pd reads it."""
        path = folder / f"identity-{index:02}"
        write_file(path, self.identity(index).to_bytes(), private=True)
        return path

    def certificate(self, index: int) -> str:
        peer_id = self.identity(index).peer_id
        return certificate.issue(_key("membership"), run=self.card.run, peer_id=peer_id, lifetime_s=CERTIFICATE_S)

    def step_tokens(self, index: int) -> int:
        """What a member does in one step; no two neighbours are equally fast."""
        return 4 * (2 + index % 3) * SEQUENCE_TOKENS

    def update(self, index: int, round: int, tokens: int) -> Update:
        """A member's update, another one for each member and round."""
        draw = torch.Generator().manual_seed(1_000_000 * index + round)
        vector = torch.randn(self.spec.sync.fragment_values(round, self.values), generator=draw)
        return Update(vector, tokens, first_batch=0, batches=tokens // SEQUENCE_TOKENS, flops=1)


def _key(name: str) -> Ed25519PrivateKey:
    """The same in each process, and of no worth."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"light {name}".encode()).digest())
