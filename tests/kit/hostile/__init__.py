"""Hostile checkpoint folders and receipts: what was done to a valid one, by whom. Used by test_hostile_checkpoints.

Each case changes a copy of a small real run. "anyone" has the folder and no key; "another key" signs with a key of its
own; "the host" has the run's own keys, and is dishonest or broken.
"""

from tests.kit.hostile import agreement, folder, info, ledger, other_key, receipts, rounds, weights
from tests.kit.hostile.cases import Case

__all__ = ["CHECKPOINTS", "RECEIPTS", "Case"]

CHECKPOINTS: list[Case] = [
    *folder.CASES,
    *rounds.CASES,
    *other_key.CASES,
    *weights.CASES,
    *info.CASES,
    *agreement.CASES,
    *ledger.CASES,
]
RECEIPTS: list[Case] = [*receipts.CASES]
