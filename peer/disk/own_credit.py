"""The credit of a home in all its runs, as its receipts show it, each of them checked; talks to nobody.

>>> import tempfile
>>> own_credit(Path(tempfile.mkdtemp()))
[]
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer.disk.local_peers import find_peers
from protocol.credit_sum import CreditSum
from protocol.errors import InputError
from protocol.ledger_entry import CreditEntry
from protocol.receipt import Receipt
from protocol.verify import ReceiptSurvey, survey_receipts
from protocol.verify_credit import credit_facts, ledger_facts


@dataclass(frozen=True)
class RunCredit:
    """What the receipts of one run show."""

    folder: Path  # of the receipts
    name: str  # of the run; empty where nothing says it
    run: str  # the first 16 hex digits of its digest
    survey: ReceiptSurvey
    damaged: tuple[str, ...]  # files that do not hold, here or set aside in damaged/
    unconfirmed: tuple[str, ...]  # root keys that signed some of it, and that the user has not confirmed

    @property
    def total(self) -> CreditSum:
        return self.survey.total

    @property
    def holds(self) -> bool:
        """Whether each receipt here was checked, and holds by a key that the user has confirmed."""
        return not (self.survey.bad or self.total.problems or self.unconfirmed)

    @property
    def why_not(self) -> list[str]:
        """What does not hold."""
        keys = [f"signed by a key that you have not confirmed: {key}" for key in self.unconfirmed]
        return [*self.survey.bad, *self.total.problems, *keys]

    def receipts_of(self, peer_id: str) -> list[Receipt]:
        """Of one peer's credit, each round once.

        Raises:
            InputError: there are none, or something here does not hold.
        """
        if not self.holds:
            hint = _PAST_DAMAGE if self.survey.bad or self.total.problems else _CONFIRM
            raise InputError(f"{self.folder}: {self.why_not[0]}", hint)
        own = dict[int, Receipt]()
        for receipt in self.survey.receipts:
            if isinstance(receipt.entry, CreditEntry) and receipt.entry.peer_id == peer_id:
                own[receipt.entry.round] = receipt
        if not own:
            raise InputError(f"{self.folder}: no receipt of credit to {peer_id}", _LATER)
        return list(own.values())

    def to_json(self, me: str | None) -> dict[str, Any]:
        """For scripts: `tokens`, `flops` and `rounds` are those of the peer `me`, `others` the tokens of each other."""
        peers = {peer: self.total.of_peer(peer) for peer in self.total.peers}
        return {
            "run": self.run,
            "name": self.name,
            "folder": str(self.folder),
            "receipts": self.survey.count,
            "holds": self.holds,
            "why_not": self.why_not,
            "damaged": list(self.damaged),
            **credit_facts(peers.get(me or "", CreditSum())),
            "ledger": ledger_facts(self.total),
            "others": {peer: credit.tokens for peer, credit in peers.items() if peer != me},
        }


_PAST_DAMAGE = (
    "`potluck join` sets it aside and fetches it again; where the host is gone, move it out of the folder: the card is "
    "then of the others"
)
_CONFIRM = "if that is the key of the run's host, name it with --key"
_LATER = "credit is granted some rounds after the work; `potluck join` fetches the receipts"


def own_credit(home: Path, trusted: Collection[str] = (), run: str | None = None) -> list[RunCredit]:
    """The runs of a home that there are receipts of, by their digests.

    Args:
        trusted: fingerprints of the root keys that the user has confirmed.
        run: only runs with this name, or whose digest begins so.

    Raises:
        InputError: no run here is called so, or a folder cannot be read.
    """
    found = []
    for peer in find_peers(home, run):
        folder = peer.folder / "receipts"
        aside = tuple(f"damaged/{name}" for name in _names(folder / "damaged"))
        if any(name.endswith(".json") for name in _names(folder)):
            survey = survey_receipts(folder)
        elif aside:
            survey = ReceiptSurvey(0, 0)
        else:
            continue
        name = peer.name or next((receipt.open_card().spec.run.name for receipt in survey.receipts), "")
        bad = tuple(line.partition(":")[0] for line in survey.bad)
        found.append(RunCredit(folder, name, peer.run, survey, bad + aside, tuple(sorted(survey.keys - set(trusted)))))
    return found


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}", "check the folder's owner and permissions") from error
