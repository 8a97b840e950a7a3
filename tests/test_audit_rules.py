"""Lots, verdicts and what they do to credit: in the book that coordinator and ledger audit share; and who may claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lab.training_fixtures import audited
from peer.disk.peer_folder import PeerFolder
from peer.disk.shown_work import KEPT, ShownWork
from peer.training.codecs.codec import EncodedUpdate
from peer.training.own_state import OwnState
from peer.training.state import SharedState
from protocol.audit import Lot, check_link, check_start, in_ppm, is_drawn, link_before, passes
from protocol.credit_book import CreditBook
from protocol.errors import InputError, VerificationError
from protocol.keys import PeerIdentity
from protocol.last import Last
from protocol.ledger_entry import AuditEntry, BanEntry, ClaimEntry, CreditEntry, Entry, LotEntry, RoundEntry, RunEntry
from protocol.run_spec import Audit
from protocol.signed import Signed
from protocol.statements import Claim, Jump, Late, Start, Trajectory
from protocol.succession import check_claim
from tests.swarm_kit import World

IDS = [PeerIdentity.generate().peer_id for _ in range(2)]
HOLD = 2
SEED = "5e" * 32
ROUNDS = 12


def links() -> list[str]:
    """Link 0 to the last."""
    chain = [SEED]
    for _ in range(ROUNDS):
        chain.append(link_before(chain[-1]))
    return chain[::-1]


class Book:
    """A ledger's entries as a coordinator makes them, of rounds in which all work."""

    def __init__(self, tmp_path: Path, **audit: Any) -> None:
        world = World(tmp_path, values=10)
        spec = audited(world.card.spec, Audit(share=0.5, **audit))
        self.card = world.card.model_copy(update={"spec": spec, "audit_chain": links()[0]})
        self.book, self.round = CreditBook(self.card), 0
        self.enter(RunEntry(run=self.card.run, genesis=self.card.genesis, root_key="0" * 64))

    def enter(self, *entries: Entry) -> None:
        for entry in entries:
            self.book.enter(entry)

    def state(self, round: int) -> str:
        return f"{round:064x}" if round else self.card.genesis

    def work(self, kind: Any, round: int, peer: str) -> Any:
        said: dict[str, Any] = {"run": self.card.run, "round": round, "state": self.state(round)}
        return kind(**said, peer_id=peer, tokens=100, flops=1, claim=f"{round:060x}{IDS.index(peer):04x}")

    def next_round(self) -> None:
        self.round += 1
        said: dict[str, Any] = {"run": self.card.run, "round": self.round, "agreement": "a" * 64}
        self.enter(RoundEntry(**said, base=self.state(self.round - 1), state=self.state(self.round)))
        self.enter(*(self.work(ClaimEntry, self.round, peer) for peer in IDS))

    def lot(self, round: int, link: str = "") -> LotEntry:
        return LotEntry(run=self.card.run, round=round, link=link or links()[round])

    def audit(self, round: int, peer: str, verdict: str = "pass", **said: Any) -> AuditEntry:
        said = {"ppm": {"update": 5}, "limit": 20_000} | said if verdict in ("pass", "fail") else said
        claim = self.work(ClaimEntry, round, peer).claim
        return AuditEntry(
            run=self.card.run,
            round=round,
            peer_id=peer,
            claim=claim,
            verdict=verdict,
            **said,  # type: ignore[arg-type]
        )

    def credit(self, round: int, peer: str) -> CreditEntry:
        return self.work(CreditEntry, round, peer)  # type: ignore[no-any-return]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """Two rounds, of which the first is drawn: all first claims are."""
    book = Book(tmp_path)
    book.next_round()
    book.next_round()
    book.enter(book.lot(1))
    return book


def test_a_drawn_claim_is_credit_after_its_audit_and_not_before(book: Book) -> None:
    book.enter(book.audit(1, IDS[0]))
    book.next_round()
    book.enter(book.lot(2))
    with pytest.raises(VerificationError, match="before its audit"):
        book.enter(book.credit(1, IDS[1]))


def test_what_passed_is_granted_when_its_hold_is_over(book: Book) -> None:
    book.enter(book.audit(1, IDS[0]))
    with pytest.raises(VerificationError, match="before its hold is over"):
        book.enter(book.credit(1, IDS[0]))


def test_what_passed_may_not_be_kept_back(book: Book) -> None:
    book.enter(book.audit(1, IDS[0]))
    book.next_round()
    book.enter(book.lot(2), book.credit(1, IDS[0]))
    book.enter(book.audit(1, IDS[1], "excused"))
    with pytest.raises(VerificationError, match="is due and is kept back"):
        book.next_round()


@pytest.mark.parametrize("verdict", ["fail", "silent"])
def test_what_failed_is_void_and_only_that(book: Book, verdict: str) -> None:
    said: dict[str, Any] = {"ppm": {"update": 500_000}} if verdict == "fail" else {}
    if verdict == "silent":
        with pytest.raises(VerificationError, match="silent after 1 of 10 rounds"):
            book.enter(book.audit(1, IDS[0], verdict))
        return
    book.enter(book.audit(1, IDS[0], verdict, **said))
    account = book.book.accounts[IDS[0]]
    assert (account.pending, account.void, account.audits) == (100, 100, {"fail": 1})


def test_who_is_silent_has_had_its_rounds(tmp_path: Path) -> None:
    book = Book(tmp_path, reveal_rounds=2)
    for round in range(1, 4):
        book.next_round()
        if round > 1:
            book.enter(book.lot(round - 1))
    book.enter(book.audit(1, IDS[0], "silent"))
    assert book.book.accounts[IDS[0]].void == 100


def test_a_verdict_follows_from_the_distances(book: Book) -> None:
    for wrong in ({"ppm": {"update": 20_001}}, {"ppm": {}}):
        with pytest.raises(VerificationError, match="says what its replay does not"):
            book.enter(book.audit(1, IDS[0], **wrong))
    with pytest.raises(VerificationError, match="says what its replay does not"):
        book.enter(book.audit(1, IDS[1], "fail"))


def test_a_verdict_has_no_limit_of_its_own(book: Book) -> None:
    for verdict, limit in (("pass", 10**9), ("fail", 4)):
        with pytest.raises(VerificationError, match="a limit of its own"):
            book.enter(book.audit(1, IDS[0], verdict, limit=limit))


def test_nothing_is_audited_that_was_not_drawn_or_twice(book: Book) -> None:
    with pytest.raises(VerificationError, match="was not drawn"):
        book.enter(book.audit(2, IDS[0]))
    book.enter(book.audit(1, IDS[0]))
    with pytest.raises(VerificationError, match="was not drawn"):
        book.enter(book.audit(1, IDS[0]))


def test_a_lot_is_of_the_hosts_chain_each_once_and_none_is_left_out(book: Book) -> None:
    with pytest.raises(VerificationError, match="a lot for round 1"):
        book.enter(book.lot(1))
    with pytest.raises(VerificationError, match="a lot for round 2"):
        book.enter(book.lot(2))  # before the next round is there
    book.enter(*(book.audit(1, peer) for peer in IDS))
    book.next_round()
    for link in (links()[3], links()[1], "0" * 64):
        with pytest.raises(VerificationError, match="not of the host's chain"):
            check_link(links()[1], link, 1)
    with pytest.raises(VerificationError, match="not of the host's chain"):
        book.enter(book.lot(2, links()[3]))
    book.enter(*(book.credit(1, peer) for peer in IDS))
    with pytest.raises(VerificationError, match="no lot was drawn for round 2"):
        book.next_round()


def test_a_ban_ends_what_is_drawn(book: Book) -> None:
    book.enter(BanEntry(run=book.card.run, round=2, peer_id=IDS[0], reason="noise"))
    assert book.book.accounts[IDS[0]].void == 200
    with pytest.raises(VerificationError, match="was not drawn"):
        book.enter(book.audit(1, IDS[0]))


def test_lots_fall_as_often_as_the_run_wants_and_newcomers_are_always_drawn() -> None:
    audit = Audit(share=0.1, first_rounds=2)
    lots = [Lot("a" * 64, round, "b" * 64, "c" * 64) for round in range(4000)]
    drawn = sum(is_drawn(lot, IDS[0], 2, audit) for lot in lots)
    assert 320 < drawn < 480
    assert all(is_drawn(lot, IDS[0], 1, audit) for lot in lots[:50])
    one, other = ([is_drawn(lot, peer, 9, audit) for lot in lots] for peer in IDS)
    assert one != other


def test_distances_are_rounded_up_and_bounded() -> None:
    assert in_ppm({"update": 0.0200001, "moments": float("inf")}) == {"update": 20_001, "moments": 10**9}
    assert not passes({"update": 20_001}, 20_000)


# ---- claims ----------------------------------------------------------------------------------------------------------


def claim_of(round: int, start: Start | None, end: str, **said: Any) -> Claim:
    return Claim(
        run="a" * 64,
        round=round,
        base="b" * 64,
        tokens=10,
        flops=0,
        first_batch=0,
        batches=1,
        update=EncodedUpdate.encode(torch.zeros(4), "fp32").digest,
        trajectory=Trajectory(precision="fp32", start=start, end=end),
        **said,
    )


def test_work_begins_where_agreed_work_had_ended_or_with_nothing() -> None:
    first = claim_of(1, None, "1" * 64)
    check_start(first, None, 0)
    third = claim_of(3, Start(round=1, own="1" * 64), "3" * 64)
    check_start(third, first, 1)  # it has not learned that round 2 was agreed
    for named in (None, claim_of(1, None, "9" * 64), first.model_copy(update={"trajectory": None})):
        with pytest.raises(VerificationError, match="to which its author's work of round 1 had not led"):
            check_start(third, named, 0)
    with pytest.raises(VerificationError, match="work of round 3 had not led"):
        check_start(claim_of(3, Start(round=3, own="3" * 64), "3" * 64), claim_of(3, None, "3" * 64), 0)
    with pytest.raises(VerificationError, match="after which 16 more of its author's were agreed on"):
        check_start(claim_of(99, Start(round=1, own="1" * 64), "3" * 64), first, 16)


def test_work_that_began_before_its_base_was_agreed_began_on_its_authors_own_round() -> None:
    first = claim_of(1, None, "1" * 64)
    jump = Jump(after=1, base=first.base, update=first.update)
    check_start(claim_of(2, Start(round=1, own="1" * 64, jump=jump), "2" * 64), first, 0)
    other = first.update.model_copy(update={"root": "9" * 64})
    for wrong in (jump.model_copy(update={"base": "9" * 64}), jump.model_copy(update={"update": other})):
        with pytest.raises(VerificationError, match="beside a round 1 that was not its author's"):
            check_start(claim_of(2, Start(round=1, own="1" * 64, jump=wrong), "2" * 64), first, 0)
    with pytest.raises(VerificationError, match="beside a round 1 that was not its author's"):
        check_start(claim_of(3, Start(round=1, own="1" * 64, jump=jump), "2" * 64), first, 0)


def test_only_where_rounds_overlap_work_is_ahead_of_its_base_and_never_more_of_it_than_was_done(tmp_path: Path) -> None:
    spec, last = audited(World(tmp_path, values=10).card.spec, Audit(share=0.1)), Last(1, "b" * 64)
    both = spec.model_copy(update={"sync": spec.sync.model_copy(update={"overlap": True})})
    jump = Jump(after=1, base="b" * 64, update=claim_of(1, None, "1" * 64).update)

    def made(**changes: Any) -> Claim:
        return claim_of(2, Start(round=1, own="1" * 64, jump=jump.model_copy(update=changes)), "2" * 64)

    check_claim("p", made(), last, both)
    with pytest.raises(VerificationError, match="whose rounds do not overlap"):
        check_claim("p", made(), last, spec)
    wrong = [{name: value} for name, value in (("codec", "int2"), ("chunk_values", 1), ("values", 6))]
    for changes in ({"after": 2}, *({"update": jump.update.model_copy(update=each)} for each in wrong)):
        with pytest.raises(VerificationError, match="ahead of its base that cannot be"):
            check_claim("p", made(**changes), last, both)


def test_in_an_audited_run_a_claim_says_where_its_work_began_and_holds_no_late_work(tmp_path: Path) -> None:
    world = World(tmp_path, values=10)
    spec, last = audited(world.card.spec, Audit(share=0.1)), Last(0, "b" * 64)
    claim = claim_of(1, None, "1" * 64)
    check_claim("p", claim, last, spec)
    with pytest.raises(VerificationError, match="without where it began and ended"):
        check_claim("p", claim.model_copy(update={"trajectory": None}), last, spec)
    late = Late(base="c" * 64, tokens=5, first_batch=0, batches=1)
    with pytest.raises(VerificationError, match="late work, which cannot be replayed"):
        check_claim("p", claim.model_copy(update={"late": late}), last, spec)
    with pytest.raises(VerificationError, match="whose work is not replayed"):
        check_claim("p", claim, last, world.card.spec)


# ---- what a peer keeps -----------------------------------------------------------------------------------------------


def made(identity: PeerIdentity, round: int, start: OwnState | None, end: OwnState) -> Signed[Claim]:
    began = Start(round=round - 1, own=start.digest) if start else None
    return claim_of(round, began, end.digest).sign(identity)


def own(number: int) -> OwnState:
    return OwnState({"steps": str(number)}, {"exp_avg": torch.full((4,), float(number))})


def test_a_peer_can_show_its_newest_work_also_after_a_restart(tmp_path: Path) -> None:
    base = SharedState(0, (("w", (4,)),), torch.zeros(4))
    folder, identity = PeerFolder(tmp_path, "a" * 64), PeerIdentity.generate()
    shown = ShownWork(folder, lambda digest: base)
    assert shown.standing() is None
    update = EncodedUpdate.encode(torch.zeros(4), "fp32")
    claims = []
    for round in range(1, KEPT + 4):
        before = own(round - 1) if round > 1 else None
        claims.append(made(identity, round, before, own(round)))
        shown.keep(claims[-1], own(round), update)
        if round != KEPT + 3:
            shown.agreed(claims[-1].digest)
    shown = ShownWork(folder, lambda digest: base)
    assert shown.standing() == Start(round=KEPT + 2, own=own(KEPT + 2).digest), "the last is not known to be agreed"
    again = shown.reveal(claims[-1].digest)  # but it may be, all the same
    assert again.update.chunks == update.chunks and again.end.digest == own(KEPT + 3).digest
    assert again.start is not None and again.start.digest == own(KEPT + 2).digest
    with pytest.raises(InputError, match="not kept any more"):
        shown.reveal(claims[0].digest)
    wanted = claims[KEPT].digest
    shown.drawn(KEPT + 3, [wanted])
    assert shown.reveal(wanted).claim.round == KEPT + 1
    assert shown.standing() is not None and shown.load_own(own(KEPT + 2).digest) is not None
    files = sorted(path.name for path in (folder.path / "audit").iterdir())
    assert len(files) == 2 + 3 + 1, "two claims, the own states that they began with and led to, and their one update"
    folder.close()


def test_a_damaged_own_state_is_no_reason_to_stop(tmp_path: Path) -> None:
    folder, identity = PeerFolder(tmp_path, "a" * 64), PeerIdentity.generate()
    shown = ShownWork(folder, lambda digest: SharedState(0, (("w", (4,)),), torch.zeros(4)))
    claim = made(identity, 1, None, own(1))
    shown.keep(claim, own(1), EncodedUpdate.encode(torch.zeros(4), "fp32"))
    shown.agreed(claim.digest)
    path = next((folder.path / "audit").glob("own-*"))
    path.write_bytes(path.read_bytes()[:-2])
    assert shown.load_own(own(1).digest) is None
    note = next((folder.path / "audit").glob("*.json"))
    note.write_bytes(b"{")
    assert shown.standing() is None
    folder.close()
