"""The box as it stands on the disk: promises, votes and farewells of one member, sealed by `peer.disk.peer_folder`.

{"round":7,"attempt":2,"leader":"12D3KooW…","ballots":[[2,"<group>","<state>"]],"evidence":"<base64 of the group>",
 "farewells":[[7,2,"<base64 of the envelope>"]]}
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from typing import Any

from peer.net import wire
from peer.net.opening import Opening
from peer.round.box import Ballot, Box
from peer.round.group import Group
from protocol import canonical
from protocol.errors import FormatError, PotluckError
from protocol.statements import Farewell

logger = logging.getLogger(__name__)

MAX_BOX_BYTES = 64 << 20


def to_bytes(box: Box) -> bytes:
    evidence = wire.group_message(box.group.bare(), "").SerializeToString() if box.group else b""
    value: dict[str, Any] = {
        "round": box.round,
        "attempt": box.attempt,
        "leader": box.leader,
        "ballots": [list(ballot) if ballot.completes else list(ballot[:3]) for ballot in box.ballots],
        "evidence": base64.b64encode(evidence).decode(),
        "farewells": [
            [number, said.value.attempt, base64.b64encode(said.data).decode()] for number, said in box.farewells.items()
        ],
    }
    if box.epoch:
        value["epoch"] = box.epoch
    return json.dumps(value).encode()


def from_bytes(data: bytes, opening: Opening) -> Box:
    """Raises: FormatError: not a box."""
    value = canonical.loads(data, max_bytes=MAX_BOX_BYTES)
    try:
        evidence = base64.b64decode(value.get("evidence", ""), validate=True)
        signed = [base64.b64decode(said, validate=True) for _, _, said in value.get("farewells", [])]
        opened = [opening.statement(Farewell, said) for said in signed]
        ballots = tuple(Ballot(int(a), str(g), str(s), *map(bool, rest)) for a, g, s, *rest in value["ballots"])
        box = Box(
            round=int(value["round"]),
            attempt=int(value["attempt"]),
            leader=str(value["leader"]),
            ballots=ballots,
            farewells={said.value.round: said for said in opened},
            epoch=int(value.get("epoch", 0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error, PotluckError) as error:
        raise FormatError("not a ballot box") from error
    return box if not ballots else _with_group(box, evidence, opening)


def _with_group(box: Box, evidence: bytes, opening: Opening) -> Box:
    group: Group | None = None
    try:
        group = wire.group_of_bytes(evidence, opening)
    except PotluckError as error:
        logger.warning("round %d: voted before a restart, and cannot show for what: %s", box.round, error.message)
    return Box(box.round, box.attempt, box.leader, box.ballots, group, group is None, box.farewells, box.epoch)
