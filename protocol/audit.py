"""Which claims are replayed, and what a replay must show: one rule for coordinator, ledger audit and evidence.

When the next round is committed, and not before, it is drawn by lot which of a round's claims are replayed. The lot
depends on that next round's state, which its members make, and on a secret of the host's that was fixed before the run:
link r of a chain of hashes, of which the run card names the end. So neither a member nor the host can know it before
its claim is signed, and neither alone can choose it:

    link r - 1 = SHA-256(link r), and link 0 stands in the run card
    lot = SHA-256("potluck-audit-v1\\n" + canonical JSON of {"run", "round", "state", "link", "peer"})

A replay of honest work differs by rounding: the more, the coarser the precision that it was done in, and while AdamW's
moments are cold: `limit` says how far apart the two may be.

Who is found to have claimed what it did not do is banned at once. Who shows nothing loses the credit of that claim, and
is banned when that happens again and again: a disk may fail, and a host may ask too late.

    >>> check_link(link_before("ab" * 32), "ab" * 32, 1), passes({"update": 19_000}, 20_000), passes({}, 20_000)
    (None, True, False)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

from protocol import canonical
from protocol.digests import Digest
from protocol.errors import VerificationError
from protocol.run_spec import Audit
from protocol.statements import Claim, Trajectory

Verdict = Literal["pass", "fail", "silent", "excused"]
PPM = 1_000_000
MOST_PPM = 10**9  # whatever is farther, or cannot be compared
LIMITS_PPM = {"fp32": 20_000, "fp16": 30_000, "bf16": 50_000}  # of a relative L2 distance
MOST_LATER = 16  # agreed claims of a member after the one that its work goes on from
COLD_PPM = 100_000  # where the work began with moments of zero
MOST_SILENT, OF_PASSES = 2, 32  # drawn claims that a member may not show, or one in so many that it did show
ALL_LIMITS_PPM = frozenset((*LIMITS_PPM.values(), COLD_PPM))
_DOMAIN = b"potluck-audit-v1\n"


class Lot(NamedTuple):
    """What is drawn by for the claims of one round."""

    run: Digest
    round: int
    state: Digest  # that the next round led to; of a run's last round, its own
    link: Digest


def link_before(link: Digest) -> Digest:
    """The link of the round before."""
    return hashlib.sha256(bytes.fromhex(link)).hexdigest()


def check_link(anchor: Digest, link: Digest, rounds: int) -> None:
    """Check that a link comes so many rounds after another one. Raises: VerificationError."""
    for _ in range(rounds):
        link = link_before(link)
    if link != anchor:
        raise VerificationError("a lot that is not of the host's chain, which the run card has fixed")


def is_drawn(lot: Lot, peer_id: str, earlier: int, audit: Audit) -> bool:
    """Whether a peer's claim of a round is replayed.

    Args:
        earlier: how many of its claims were agreed before this one.
    """
    if earlier < audit.first_rounds:
        return True
    said = canonical.dumps(lot._asdict() | {"peer": peer_id})
    value = int.from_bytes(hashlib.sha256(_DOMAIN + said).digest()[:8], "big")
    return value < audit.share * 2.0**64


def limit(trajectory: Trajectory) -> int:
    """How far apart a claim and its replay may be, in millionths."""
    return LIMITS_PPM[trajectory.precision] if trajectory.start is not None else COLD_PPM


def in_ppm(distances: Mapping[str, float]) -> dict[str, int]:
    """Distances in millionths, rounded up."""
    return {name: int(-(-min(value * PPM, MOST_PPM) // 1)) for name, value in distances.items()}


def passes(ppm: Mapping[str, int], most: int) -> bool:
    """Whether a replay shows the work that was claimed."""
    return bool(ppm) and all(0 <= value <= most for value in ppm.values())


def is_to_ban(audits: Mapping[str, int]) -> bool:
    """Whether a member is banned for what its audits have said so far.

    >>> is_to_ban({"pass": 99, "fail": 1}), is_to_ban({"silent": 2}), is_to_ban({"silent": 3, "pass": 95})
    (True, False, True)

    Args:
        audits: verdict -> how many.
    """
    silent = audits.get("silent", 0)
    return audits.get("fail", 0) > 0 or (silent > MOST_SILENT and silent * OF_PASSES > audits.get("pass", 0))


def check_start(claim: Claim, named: Claim | None, later: int) -> None:
    """Check that a claim's work began where agreed work of its author had ended, or with nothing.

    Args:
        named: its author's claim in the agreement of the round that it names; None: there is none.
        later: in how many rounds after that one, and before the claim's, its author's work was agreed on. It may not
            have learned of the newest.

    Raises:
        VerificationError: it did not.
    """
    start = claim.trajectory.start if claim.trajectory is not None else None
    if start is None:
        return
    led_to = named.trajectory.end if named is not None and named.trajectory is not None else None
    if named is None or led_to != start.own or start.round >= claim.round:
        raise VerificationError(
            f"the work of round {claim.round} began with an own state to which its author's work of round "
            f"{start.round} had not led"
        )
    jump = start.jump
    if jump is not None and (start.round + 1 != claim.round or (jump.base, jump.update) != (named.base, named.update)):
        raise VerificationError(
            f"the work of round {claim.round} began beside a round {start.round} that was not its author's"
        )
    if later >= MOST_LATER:
        raise VerificationError(
            f"the work of round {claim.round} began where that of round {start.round} had ended, "
            f"after which {later} more of its author's were agreed on"
        )
