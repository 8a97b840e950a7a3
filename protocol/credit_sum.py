"""What proven ledger entries come to: each credit once, and what contradicts another one by its name.

`verify`, `potluck receipts` and a proof of credit all add up here.

    >>> entry = CreditEntry(run="a" * 64, round=2, peer_id="1" * 52, tokens=9, flops=1, claim="b" * 64, state="c" * 64)
    >>> total = CreditSum()
    >>> for name in ("round-000002.json", "copy.json"):
    ...     total.add(name, entry, LedgerHead("potluck/demo/0123456789abcdef", 4, bytes(32)))
    >>> total.tokens, total.told(), total.problems
    (9, '9 tokens to 1111111111111111111111111111111111111111111111111111, in 1 rounds from 2 to 2', [])
"""

from __future__ import annotations

from protocol.ledger_entry import CreditEntry, Entry
from protocol.note import LedgerHead


class CreditSum:
    """A sum of credit, of one run or of several."""

    def __init__(self) -> None:
        self.problems: list[str] = []  # what cannot be true together
        self._found: dict[tuple[str, int, str], CreditEntry] = {}
        self._heads: dict[tuple[str, int], LedgerHead] = {}

    def add(self, name: str, entry: Entry, head: LedgerHead) -> None:
        """Count an entry that was shown to stand in the ledger.

        Args:
            name: of what shows it; problems begin with it.
            head: the ledger that it was shown to stand in.
        """
        if self._heads.setdefault((head.origin, head.size), head).root != head.root:
            self.problems.append(f"{name}: the ledger signed two different heads of {head.size} leaves")
        if isinstance(entry, CreditEntry):
            known = self._found.setdefault((entry.run, entry.round, entry.peer_id), entry)
            if known != entry:
                self.problems.append(f"{name}: another one shows other credit for the same round")

    @property
    def entries(self) -> list[CreditEntry]:
        """By rounds."""
        return sorted(self._found.values(), key=lambda entry: entry.round)

    @property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self._found.values())

    @property
    def peers(self) -> list[str]:
        """Whose credit it is."""
        return sorted({entry.peer_id for entry in self._found.values()})

    @property
    def rounds(self) -> list[int]:
        return sorted({entry.round for entry in self._found.values()})

    def of_peer(self, peer_id: str) -> CreditSum:
        """One peer's share of it, without ledger heads."""
        share = CreditSum()
        share._found = {key: entry for key, entry in self._found.items() if entry.peer_id == peer_id}
        return share

    @property
    def newest_head(self) -> LedgerHead | None:
        """That of the most leaves."""
        return max(self._heads.values(), key=lambda head: head.size, default=None)

    def told(self) -> str:
        """In words; there is some credit."""
        peers, rounds = self.peers, self.rounds
        whom = peers[0] if len(peers) == 1 else f"{len(peers)} peers"
        return f"{self.tokens} tokens to {whom}, in {len(rounds)} rounds from {rounds[0]} to {rounds[-1]}"
