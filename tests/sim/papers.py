"""Certificates in a simulated run: groups go over the wire as they ship, and whose certificate has ended is looked at.

Only where a plan ends some: a group as bytes and back takes longer than all else that a message needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from peer.net import wire
from peer.round.group import Group
from protocol.errors import RefusedError
from protocol.signed import Signed
from tests.sim.spec import RUN


@dataclass(frozen=True)
class Paper:
    peer_id: str
    reducer: bool = False


class Papers:
    """Stands for `peer.net.opening.Opening`: a statement's bytes are its digest, a certificate is "name/number".

    Attributes:
        newest: name -> the number of its newest certificate; all before have ended.
    """

    run = RUN

    def __init__(self) -> None:
        self.newest: Counter[str] = Counter()
        self.statements: dict[bytes, Signed[Any]] = {}

    def certificate(self, name: str) -> str:
        return f"{name}/{self.newest[name]}"

    def end(self, names: Iterable[str]) -> None:
        """The certificates of these end, and they have new ones."""
        self.newest.update(names)

    def keep(self, signed: Signed[Any]) -> Signed[Any]:
        self.statements[signed.data] = signed
        return signed

    def carried(self, group: Group, *, shown: bool) -> Group:
        """A group as it comes out of the wire. Raises: RefusedError: somebody's certificate in it has ended."""
        made = wire.group_message(group.bare() if shown else group, "")
        return wire.group(made, group.leader, self, shown=shown)  # type: ignore[arg-type]

    # ---- as `Opening` has it -----------------------------------------------------------------------------------------

    def statement(self, kind: type, data: bytes) -> Signed[Any]:
        return self.statements[data]

    def word(self, data: bytes) -> Signed[Any]:
        return self.statements[data]

    def member(self, token: str, *, accept_expired: bool = False) -> Paper:
        name, _, number = token.partition("/")
        if int(number) < self.newest[name] and not accept_expired:
            raise RefusedError(f"the certificate of {name} has ended")
        return Paper(name)

    def member_is(self, token: str, peer: str, *, accept_expired: bool = False) -> None:
        assert self.member(token, accept_expired=accept_expired).peer_id == peer
