"""Stored vectors: bytes that were made once, with keys that are fixed, and what is made of them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import certificate
from protocol.keys import PeerIdentity
from tests.kit.builders import NOW, fixed_root_key

VECTORS = Path(__file__).parents[1] / "vectors"
Makers = Mapping[str, Callable[[], bytes]]  # file name -> what makes its bytes


def ed25519(number: int) -> Ed25519PrivateKey:
    """The key whose seed is this byte, 32 times."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


ROOT = fixed_root_key(5)  # the private number
LEDGER, MEMBERSHIP = ed25519(3), ed25519(4)
PEERS = [PeerIdentity(ed25519(1)), PeerIdentity(ed25519(2))]
LATE_PEER = PeerIdentity(ed25519(6))
GENESIS, STATE = "b" * 64, "d" * 64


def issue(peer: PeerIdentity, run: str) -> str:
    return certificate.issue(MEMBERSHIP, run=run, peer_id=peer.peer_id, lifetime_s=3600, now=NOW)


def stored(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def write_missing(makers: Makers) -> None:
    """Make the vectors that are not there yet, in order; what is there is never changed."""
    VECTORS.mkdir(exist_ok=True)
    for name, make in makers.items():
        if not (VECTORS / name).exists():
            (VECTORS / name).write_bytes(make())
