"""What the tests of the link to the coordinator share: a peer that says and hears nothing, and its empty shelves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from peer.link.answers import Announcement
from peer.link.background import Greeting
from protocol.agreement import Agreement


class Nothing:
    """Neither receipts nor states."""

    def fetch(self, client: object, certificate: str) -> None: ...

    def offered(self) -> dict[str, int]:
        return {}


class Silent:
    """A peer that has nothing to say, and listens to nothing."""

    heads: Any = SimpleNamespace(shown=lambda text: None, to_check=lambda: None)

    reveals = None

    def renewed(self, token: str) -> None: ...

    def greeting(self) -> Greeting:
        return Greeting(0, 0.0, [], False, b"here")

    def heard(self, answer: Announcement) -> None: ...

    def clock_off(self, offset_s: float) -> None: ...

    def wants_anchor(self) -> bool:
        return False

    def anchored(self, agreement: Agreement) -> None: ...

    def chain_since(self, round: int) -> list[bytes]:
        return []

    def measured(self) -> bytes | None:
        return None

    def credited(self) -> None: ...
