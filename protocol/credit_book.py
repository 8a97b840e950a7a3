"""When agreed work is credit: the one rule, by which a coordinator grants it and an audit of its ledger recomputes it.

    round     one more round is committed
    claim     work that was agreed in it: pending, of nobody who is banned
    lot       where work is audited: draws which claims of a round are replayed, when the next one is committed
    audit     what came of one that was drawn: only "pass" and "excused" leave it pending, else it is void
    credit    what a claim says, once the run's newest round is `credit.hold_rounds` later, or its last, and nothing of
              its peer's up to it is drawn whose audit is not done: who shows nothing earns nothing meanwhile
    ban       what its member has pending is void, and what it claims from now on is no claim
    unban     its next work counts again; what was void stays void

Where a run holds no credit, there are neither rounds nor claims in the ledger, and credit is entered with its round.
The hold is rounds, not time: a run that stands still grants nothing.

    >>> due_until(7, hold=4, last=0), due_until(7, hold=4, last=7)
    (3, 7)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from protocol.agreement import Agreement
from protocol.audit import ALL_LIMITS_PPM, Lot, check_link, is_drawn, passes
from protocol.errors import VerificationError
from protocol.ledger_entry import (
    AuditEntry,
    BanEntry,
    CheckpointEntry,
    ClaimEntry,
    CreditEntry,
    Entry,
    LotEntry,
    RoundEntry,
    RunEntry,
    UnbanEntry,
)
from protocol.run_card import RunCard

LEAVES = ("pass", "excused")  # verdicts that leave a claim pending
Work: TypeAlias = CreditEntry | ClaimEntry


@dataclass(frozen=True)
class Grant:
    """What one member's work in one round is worth."""

    tokens: int
    flops: int
    claim: str  # payload digest of the claim


def granted(agreement: Agreement, banned: Container[str] = ()) -> dict[str, Grant]:
    """Peer id -> what it is worth, of all in a round but those who are banned; in group order.

    The tokens are the agreed weight, which caps what a claim may count for; FLOPs shrink with it.
    """
    weights = agreement.weights
    return {
        made.by: Grant(weights[made.by], made.value.flops * weights[made.by] // made.value.worth, made.digest)
        for made in agreement.claims
        if made.by not in banned
    }


def due_until(newest: int, *, hold: int, last: int) -> int:
    """The round up to which claims are credit once `newest` is committed.

    Args:
        hold: `credit.hold_rounds`.
        last: the run's last round; 0: it has none.
    """
    return newest if newest == last else newest - hold


def due_to_draw(newest: int, last: int) -> int:
    """The round up to which it is drawn what is audited, once `newest` is committed. Arguments as `due_until`.

    >>> due_to_draw(7, 0), due_to_draw(7, 7)
    (6, 7)
    """
    return newest if newest == last else max(0, newest - 1)


@dataclass
class Account:
    """What a ledger says of one member; tokens."""

    verified: int = 0
    rounds: int = 0  # of that
    pending: int = 0
    void: int = 0
    banned: bool = False
    claims: int = 0  # agreed so far
    audits: dict[str, int] = field(default_factory=dict)  # verdict -> how many of its claims


@dataclass
class Newest:
    """The round that was entered last: what was worked in it, and who was banned before it."""

    round: int
    state: str
    works: dict[str, Work] = field(default_factory=dict)
    banned: frozenset[str] = frozenset()

    def check(self, agreement: Agreement) -> None:
        """Check that the ledger has of this round what its members agreed on. Raises: VerificationError."""
        expected = granted(agreement, self.banned)
        for peer, work in self.works.items():
            if expected.get(peer) != Grant(work.tokens, work.flops, work.claim):
                raise VerificationError(f"round {self.round}: {peer} has {work.tokens} tokens that were not agreed")
        if missing := expected.keys() - self.works.keys():
            raise VerificationError(f"round {self.round}: the work of {min(missing)} was agreed and is left out")


class CreditBook:
    """All accounts of a run, entry by entry; refuses the first that may not stand where it stands.

    Args:
        card: of the run.
    """

    def __init__(self, card: RunCard) -> None:
        self._card, self._hold = card, card.spec.credit.hold_rounds
        self._last, self._audit = card.spec.run.rounds, card.spec.audit
        self._first = True
        self.newest = Newest(0, card.genesis)
        self.accounts: dict[str, Account] = {}
        self.entries: dict[str, int] = {}  # type -> how many
        self._banned: set[str] = set()
        self._pending: OrderedDict[tuple[int, str], ClaimEntry] = OrderedDict()  # by rounds
        self._earlier: dict[tuple[int, str], int] = {}  # of rounds that are not drawn yet: a peer's claims before
        self._drawn: dict[tuple[int, str], int] = {}  # whose audit is not done -> its peer's claims up to this one
        self._drawn_of: dict[str, set[int]] = {}  # peer -> the rounds of those
        self._lot: tuple[int, str] = (0, card.audit_chain or "")  # the last round that was drawn, and its link
        self._states = {0: card.genesis}
        self._payloads: set[str] = set()

    def enter(self, entry: Entry) -> None:
        """Take the next entry. Raises: VerificationError: it may not stand here; the book is of no use after that."""
        if entry.run != self._card.run:
            raise VerificationError(f"of run {entry.run[:16]}…, expected {self._card.run[:16]}…")
        if self._first != isinstance(entry, RunEntry):
            raise VerificationError("the first entry, and no other, names the run")
        self.entries[entry.type] = self.entries.get(entry.type, 0) + 1
        match entry:
            case RunEntry():
                self._first = False
                if entry.genesis != self._card.genesis:
                    raise VerificationError("of another genesis than the run card")
            case RoundEntry():
                self._round(entry)
            case ClaimEntry():
                self._claim(entry)
            case LotEntry():
                self._draw(entry)
            case AuditEntry():
                self._audited(entry)
            case CreditEntry():
                self._credit(entry)
            case BanEntry() | UnbanEntry():
                self._ruling(entry)
            case CheckpointEntry():
                self._checkpoint(entry)

    def close(self) -> None:
        """Check that nothing is kept back at the end. Raises: VerificationError."""
        self._check_none_due()
        self._check_drawn(self.newest.round)

    def balances(self) -> Mapping[str, Account]:
        """Peer id -> account, the most verified tokens first."""
        return dict(sorted(self.accounts.items(), key=lambda item: (-item[1].verified, item[0])))

    def _account(self, peer: str) -> Account:
        return self.accounts.setdefault(peer, Account())

    def _round(self, entry: RoundEntry) -> None:
        if not self._hold:
            raise VerificationError("a round of its own, in a run that holds no credit")
        self._check_none_due()
        self._check_drawn(self.newest.round)
        if entry.base != self.newest.state:
            raise VerificationError(f"round {entry.round} starts from another state than the one before it")
        self._begin(entry.round, entry.state)

    def _begin(self, round: int, state: str) -> None:
        if round != self.newest.round + 1 and not (self._banned and not self._hold and round > self.newest.round):
            raise VerificationError(f"round {round} after round {self.newest.round}")
        if self._last and round > self._last:
            raise VerificationError(f"round {round}, and the run ends after round {self._last}")
        self.newest = Newest(round, state, banned=frozenset(self._banned))
        self._states[round] = state

    def _claim(self, entry: ClaimEntry) -> None:
        if not self._hold:
            raise VerificationError("a claim, in a run that holds no credit")
        self._work(entry)
        self._pending[entry.round, entry.peer_id] = entry
        account = self._account(entry.peer_id)
        account.pending += entry.tokens
        if self._audit.share:
            self._earlier[entry.round, entry.peer_id] = account.claims
        account.claims += 1

    def _draw(self, entry: LotEntry) -> None:
        round, audit = self._lot[0] + 1, self._audit
        if not audit.share or entry.round != round or round > due_to_draw(self.newest.round, self._last):
            raise VerificationError(f"a lot for round {entry.round}, after round {self.newest.round}")
        check_link(self._lot[1], entry.link, 1)
        self._lot = (round, entry.link)
        lot = Lot(entry.run, round, self.newest.state, entry.link)
        for key in [key for key in self._earlier if key[0] == round]:
            earlier = self._earlier.pop(key)
            if key in self._pending and is_drawn(lot, key[1], earlier, audit):
                self._drawn[key] = earlier + 1
                self._drawn_of.setdefault(key[1], set()).add(round)

    def _audited(self, entry: AuditEntry) -> None:
        key, account = (entry.round, entry.peer_id), self._account(entry.peer_id)
        if key not in self._drawn or self._pending[key].claim != entry.claim:
            raise VerificationError(f"round {entry.round}: an audit of {entry.peer_id} that was not drawn")
        if (entry.verdict == "pass") != passes(entry.ppm, entry.limit):
            raise VerificationError(f"round {entry.round}: the audit of {entry.peer_id} says what its replay does not")
        if entry.ppm and entry.limit not in ALL_LIMITS_PPM:
            raise VerificationError(f"round {entry.round}: the audit of {entry.peer_id} has a limit of its own")
        later = account.claims - self._drawn.pop(key)
        self._drawn_of[entry.peer_id].discard(entry.round)
        if entry.verdict == "silent" and later < (least := self._audit.reveal_rounds):
            raise VerificationError(
                f"round {entry.round}: {entry.peer_id} is said to be silent after {later} of {least} rounds"
            )
        account.audits[entry.verdict] = account.audits.get(entry.verdict, 0) + 1
        if entry.verdict not in LEAVES:
            tokens = self._pending.pop(key).tokens
            account.pending -= tokens
            account.void += tokens

    def _work(self, entry: Work) -> None:
        """What was done in the newest round, once by each."""
        newest, peer = self.newest, entry.peer_id
        if (entry.round, entry.state) != (newest.round, newest.state):
            raise VerificationError(f"work of round {entry.round}, expected round {newest.round} and its state")
        if peer in newest.works:
            raise VerificationError(f"round {entry.round}: {peer} has worked in it twice")
        if peer in self._banned:
            raise VerificationError(f"round {entry.round}: {peer} is banned")
        newest.works[peer] = entry

    def _credit(self, entry: CreditEntry) -> None:
        account = self._account(entry.peer_id)
        if self._hold:
            claim = self._pending.pop((entry.round, entry.peer_id), None)
            if claim is None or CreditEntry.of(claim) != entry:
                raise VerificationError(f"round {entry.round}: credit to {entry.peer_id} that no pending claim is for")
            if self._waits(entry.round, entry.peer_id):
                raise VerificationError(f"round {entry.round}: credit to {entry.peer_id} before its audit")
            if not self._due(entry.round):
                raise VerificationError(f"round {entry.round}: credit to {entry.peer_id} before its hold is over")
            account.pending -= entry.tokens
        else:
            if entry.round != self.newest.round:
                self._begin(entry.round, entry.state)
            self._work(entry)
        account.verified += entry.tokens
        account.rounds += 1

    def _ruling(self, entry: BanEntry | UnbanEntry) -> None:
        peer, bans = entry.peer_id, isinstance(entry, BanEntry)
        if bans == (peer in self._banned):
            raise VerificationError(f"{peer} is banned already" if bans else f"{peer} was not banned")
        if entry.round < self.newest.round:
            raise VerificationError(f"a ruling after round {entry.round}, expected after round {self.newest.round}")
        account = self._account(peer)
        account.banned = bans
        if not bans:
            self._banned.discard(peer)
            return
        self._banned.add(peer)
        for key in [key for key in self._pending if key[1] == peer]:
            tokens = self._pending.pop(key).tokens
            account.pending -= tokens
            account.void += tokens
        for round in self._drawn_of.pop(peer, set()):
            del self._drawn[round, peer]

    def _checkpoint(self, entry: CheckpointEntry) -> None:
        if self._states.get(entry.round, entry.state) != entry.state or (
            self._hold and entry.round not in self._states
        ):
            raise VerificationError(f"a checkpoint of round {entry.round} with a state that was not agreed")
        if self._payloads if entry.parent is None else entry.parent not in self._payloads:
            raise VerificationError(f"the checkpoint of round {entry.round} has no parent in this ledger")
        self._payloads.add(entry.payload)

    def _waits(self, round: int, peer: str) -> bool:
        """Whether a claim waits for a lot, or for an audit of its peer's."""
        first = min(self._drawn_of.get(peer, ()), default=round + 1)
        return first <= round or bool(self._audit.share and round > self._lot[0])

    def _due(self, round: int) -> bool:
        return round <= due_until(self.newest.round, hold=self._hold, last=self._last)

    def _check_none_due(self) -> None:
        oldest = next((key for key in self._pending if not self._waits(*key)), None)
        if oldest is not None and self._due(oldest[0]):
            raise VerificationError(f"round {oldest[0]}: the credit of {oldest[1]} is due and is kept back")

    def _check_drawn(self, newest: int) -> None:
        if self._audit.share and self._lot[0] != (due := due_to_draw(newest, self._last)):
            raise VerificationError(f"no lot was drawn for round {due}")
