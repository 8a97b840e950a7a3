"""The held-out loss that a member has measured for the host, who has named it for that: what it signs, when it counts.

A host that names such members (`evaluators` in run.toml) need not hold the model in memory to publish it. The statement
travels as the bytes that were signed, and stands in checkpoint.json: so whoever verifies sees whose number it is.
Nothing shows that the number is right; that is what the host trusts the member for.

    {"held_out_loss":3.25,"round":20,"run":"<digest>","sequences":256,"state":"<digest>","tokens":32512}
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from protocol.digests import Digest
from protocol.errors import RefusedError, SignatureError, VerificationError
from protocol.signed import Signed, Statement, open_signed


class Measured(Statement):
    """One member's word on the loss of one agreed state."""

    media_type: ClassVar[str] = "application/vnd.potluck.held-out-loss.v1+json"
    run: Digest
    round: int = Field(ge=1, le=10**9, strict=True)
    state: Digest  # after that round
    held_out_loss: float = Field(ge=0, allow_inf_nan=False, strict=True)  # nats per token
    sequences: int = Field(ge=1, le=10**9, strict=True)
    tokens: int = Field(ge=1, le=2**53 - 1, strict=True)


@dataclass(frozen=True)
class Asked:
    """What a loss is wanted of."""

    run: str  # digest
    round: int
    state: str  # digest
    sequences: int  # of the held-out split: all who hold the run's data come to the same figures
    tokens: int  # likewise, that are predicted


def open_measured(data: bytes, asked: Asked) -> Signed[Measured]:
    """Check a statement: its signature, its form, and that it is about what was asked.

    Raises:
        FormatError: not such a statement: a loss that is negative or no number, say.
        SignatureError: the signature does not hold.
        VerificationError: it is about another run, round or state, or other held-out data.
    """
    signed = open_signed(Measured, data)
    found = signed.value
    if found.run != asked.run:
        raise VerificationError(f"the held-out loss is of run {found.run[:16]}…, expected {asked.run[:16]}…")
    if found.round != asked.round:
        raise VerificationError(f"the held-out loss is of round {found.round}, expected {asked.round}")
    if found.state != asked.state:
        raise VerificationError(f"the held-out loss is of state {found.state[:16]}…, expected {asked.state[:16]}…")
    read, expected = (found.sequences, found.tokens), (asked.sequences, asked.tokens)
    if read != expected:
        raise VerificationError(
            f"the held-out loss is of {read[0]} sequences with {read[1]} tokens, "
            f"the run's held-out data have {expected[0]} with {expected[1]}"
        )
    return signed


def check_named(peer_id: str, named: Collection[str]) -> None:
    """Raises: RefusedError: the host does not trust this member to measure."""
    if peer_id not in named:
        raise RefusedError("the host has not named this member to measure the held-out loss")


def accept_measured(data: bytes, sender: str, asked: Asked) -> Signed[Measured]:
    """Check a statement that a member has sent, which is one of those that the host has named.

    Args:
        sender: the peer id of the certificate that it came with.

    Raises:
        SignatureError: it was signed by another member.
        Others: as `open_measured`.
    """
    signed = open_measured(data, asked)
    if signed.by != sender:
        raise SignatureError("the held-out loss was signed by another member than the one that sent it")
    return signed
