"""What both ends of the coordinator's gRPC service keep to: names, limits, and the bytes that enrolling signs.

"potluck-enroll-v1\\n" | run digest (64 hex digits) | "\\n" | challenge          signed by the peer's Ed25519 key
"potluck-session-v1\\n" | run digest (64 hex digits) | "\\n" | 8 random bytes    likewise; a session is these, signed

>>> enroll_message("ab" * 32, b"challenge")[:24]
b'potluck-enroll-v1\\nababab'
"""

from __future__ import annotations

import enum
import os
import re
from typing import Final, NamedTuple

from protocol.agreement import MAX_AGREEMENT_BYTES
from protocol.errors import FormatError
from protocol.keys import PeerIdentity, verify_peer_signature

SWARM_VERSION: Final = 3  # of what members say to each other; whoever announces a lower one is told to update
UNTOLD_VERSION: Final = 3  # that Potlucks spoke which did not say so when they described a run, or enrolled
TLS_NAME = "potluck"  # the name in the coordinator's certificate, whatever its address
HINT_KEY = "potluck-hint-bin"  # trailing metadata: an error's hint, UTF-8
MAX_MESSAGE_BYTES = MAX_AGREEMENT_BYTES + (1 << 20)  # either way
MAX_CHAIN_ROUNDS = 512  # in one chain of agreements that the ledger asks for
MAX_CHAIN_BYTES = MAX_AGREEMENT_BYTES  # likewise, together
PART_BYTES = 1 << 20  # of a file or a state, in one message
MAX_MODEL_CONFIG_BYTES = 1 << 18  # of a config.json that is sent along with a run's description
MAX_MEASURED_BYTES = 1 << 18  # that one call sends to and fro to see how fast the line is
MAX_CHALLENGE_BYTES = 256
MAX_CODE_CHARS = 128
SESSION_BYTES = 8  # drawn at a process's start
MAX_ADDRESSES = 16  # that one peer announces
MAX_ADDRESS_CHARS = 256
MAX_STATES = 64  # that one peer offers

_MULTIADDRESS = re.compile(
    r"/(ip4/\d{1,3}(\.\d{1,3}){3}|ip6/[0-9a-fA-F:]{2,39}|dns[46]?/[A-Za-z0-9.-]{1,253})"
    r"/(tcp|udp)/\d{1,5}[!-~]{0,160}/p2p/(?P<peer>[1-9A-HJ-NP-Za-km-z]{40,64})"
)


class Twin(enum.IntEnum):
    """What a member is told of another computer that uses its identity, too; numbers of coordinator.proto's `Twin`."""

    NONE = 0
    CAME_LATER = 1  # the other one is told to stop
    CAME_FIRST = 2  # this one is to stop


class ReportAnswer(NamedTuple):
    """What the coordinator says to a report of a committed round; a refusal is final."""

    accepted: bool
    reason: str = ""


def enroll_message(run: str, challenge: bytes) -> bytes:
    """The bytes a peer signs to prove that it holds its key."""
    return b"potluck-enroll-v1\n" + run.encode() + b"\n" + challenge


def check_swarm_address(address: str) -> str:
    """The peer id at the end of a libp2p multiaddress like `/ip4/203.0.113.7/tcp/4701/p2p/12D3KooW…`.

    Raises:
        FormatError: not such an address.
    """
    match = _MULTIADDRESS.fullmatch(address) if len(address) <= MAX_ADDRESS_CHARS else None
    if match is None:
        raise FormatError(f"not a swarm address: {address[:80]!r}", "expected /ip4/…/tcp/…/p2p/<peer id>")
    return match["peer"]


def draw_session(identity: PeerIdentity, run: str) -> bytes:
    """What a process shows with its announcements. Members see each other's certificates; this the coordinator alone
    sees.

    >>> me = PeerIdentity.generate()
    >>> check_session(draw_session(me, "ab" * 32), me.peer_id, "ab" * 32)
    """
    drawn = os.urandom(SESSION_BYTES)
    return drawn + identity.sign(_session_message(run, drawn))


def check_session(session: bytes, peer_id: str, run: str) -> None:
    """Check that a session is this peer's own.

    Raises:
        FormatError: it has another length.
        SignatureError: another has made it.
    """
    if len(session) != SESSION_BYTES + 64:
        raise FormatError(f"a session has {SESSION_BYTES + 64} bytes, got {len(session)}")
    drawn, signature = session[:SESSION_BYTES], session[SESSION_BYTES:]
    verify_peer_signature(peer_id, signature, _session_message(run, drawn))


def _session_message(run: str, drawn: bytes) -> bytes:
    return b"potluck-session-v1\n" + run.encode() + b"\n" + drawn


def transfer_timeout_s(size_bytes: int) -> float:
    """How long one transfer of `size_bytes` may take: ten minutes, and more where 1 Mbit/s needs more."""
    return 600.0 + size_bytes / 125_000
