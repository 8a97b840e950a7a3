"""What lots are drawn by: a chain of hashes from a secret of the host's, of which the run card names the end.

The rules are `protocol.audit`. Link r is what the secret gives after so many hashes that link 0 stands in the run card;
who knows link r cannot tell link r + 1, so nobody else knows a lot before the host enters it in the ledger.

    >>> chain = LotChain.of(bytes(32), rounds=9000)
    >>> link_before(chain.link(5000)) == chain.link(4999), link_before(chain.link(1)) == chain.link(0)
    (True, True)
"""

from __future__ import annotations

import functools

from protocol.audit import link_before
from protocol.digests import Digest
from protocol.errors import InputError

MOST_ROUNDS = 1 << 21  # of a run without an end
_MARK = 4096  # links that are remembered: one in so many


class LotChain:
    """The links of one run; make it by `of`."""

    def __init__(self, seed: bytes, rounds: int) -> None:
        self._rounds = rounds
        self._marks = {rounds: seed.hex()}
        link = seed.hex()
        for round in range(rounds, 0, -1):
            link = link_before(link)
            if (round - 1) % _MARK == 0:
                self._marks[round - 1] = link

    @classmethod
    @functools.lru_cache(maxsize=2)
    def of(cls, seed: bytes, rounds: int) -> LotChain:
        """
        Args:
            seed: 32 bytes that only the host knows.
            rounds: of the run; 0: it has no end.
        """
        return cls(seed, rounds or MOST_ROUNDS)

    def link(self, round: int) -> Digest:
        """Raises: InputError: the run has more rounds than such a chain."""
        if round > self._rounds:
            raise InputError(f"lots were made for {self._rounds} rounds", "begin a new run from the last checkpoint")
        mark = min(self._rounds, -(-round // _MARK) * _MARK)
        link = self._marks[mark]
        for _ in range(mark - round):
            link = link_before(link)
        return link
