"""A proof of credit: one string that shows a peer's credit in a run, and that nobody can make more of."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import canonical, credit_proof
from protocol.canonical import sha256_hex
from protocol.credit_proof import MAX_CREDITS, MAX_OPENED_BYTES, PREFIX, CreditProof, find_proof
from protocol.errors import FormatError, InputError, PotluckError
from protocol.ledger_entry import CreditEntry
from protocol.receipt import Receipt
from protocol.recognise import Kind, recognise
from protocol.report import Answer, Report
from protocol.verify import verify_path
from protocol.verify_credit import verify_credit
from tests.kit.builders import Run, build_run, fixed_ed25519, fixed_root_key
from tests.kit.vectors import ROOT, stored


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"))


def receipts(run: Run, peer: int = 0) -> list[Receipt]:
    mine = run.peers[peer].peer_id
    found = [index for index, entry in enumerate(run.entries) if getattr(entry, "peer_id", None) == mine]
    return [Receipt.from_bytes(run.receipt(index)) for index in found]


def proof_of(run: Run) -> CreditProof:
    return CreditProof.of(receipts(run))


def edited(proof: CreditProof, edit: Callable[[Any], object]) -> str:
    """The string with another JSON value in it, and check digits that match."""
    value = opened(str(proof))
    edit(value)
    return closed(canonical.dumps(value))


def opened(text: str) -> Any:
    body = text.removeprefix(PREFIX).partition(".")[0]
    return json.loads(zlib.decompress(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))))


def closed(data: bytes, after: bytes = b"") -> str:
    stream = zlib.compress(data) + after
    return PREFIX + base64.urlsafe_b64encode(stream).decode().rstrip("=") + "." + sha256_hex(stream)[:8]


# ---- what holds ------------------------------------------------------------------------------------------------------


def test_a_proof_shows_all_rounds_of_one_peer_and_reads_back_as_it_was_written(run: Run) -> None:
    proof = proof_of(run)
    assert CreditProof.parse(str(proof)) == proof
    total = proof.check(proof.open_card())
    assert total.tokens == sum(agreed.weights[run.peers[0].peer_id] for agreed in run.agreements.values())
    assert (total.peers, total.rounds, total.newest_head) == ([run.peers[0].peer_id], [1, 2, 3], run.head())


def test_the_report_names_run_peer_credit_and_ledger(run: Run) -> None:
    report = verify_credit(str(proof_of(run)), run.trusted)
    assert report.ok, report.to_text()
    assert [check.name for check in report.checks] == ["form", "run card", "log proof", "credit", "key"]
    facts, head = report.facts, run.head()
    assert (facts["name"], facts["run"], facts["peers"]) == ("tiny", run.spec.digest, [run.peers[0].peer_id])
    assert facts["ledger"] == {"origin": head.origin, "size": head.size, "root": head.root.hex()}
    assert f"{facts['tokens']} tokens to {run.peers[0].peer_id}, in 3 rounds from 1 to 3" in report.to_text()


def test_a_proof_of_before_verifies_for_ever() -> None:
    report = verify_credit(stored("credit-proof").decode(), {ROOT.keyid})
    assert report.ok, report.to_text()


def test_a_key_that_was_not_confirmed_is_no_yes(run: Run) -> None:
    for trusted in (set(), {fixed_root_key(9).keyid}):
        report = verify_credit(str(proof_of(run)), trusted)
        assert report.verdict == f"intact, but signed by a key that you have not confirmed: {run.root.keyid}"


def test_receipts_that_came_at_different_times_go_into_one_proof(run: Run, tmp_path: Path) -> None:
    early, later = receipts(run), run.copy(tmp_path)
    later.append(run.entries[2])
    mixed = [*early[:2], receipts(later)[2]]
    report = verify_credit(str(CreditProof.of(mixed)), run.trusted)
    assert report.ok and report.facts["ledger"]["size"] == later.tree.size > run.tree.size


def test_where_not_all_fit_the_newest_rounds_are_proven(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(str(proof_of(run)))
    monkeypatch.setattr(credit_proof, "MAX_CHARS", whole - 1)
    fewer = proof_of(run)
    assert [item.entry.round for item in fewer.receipts] in ([2, 3], [3]) and len(str(fewer)) < whole
    assert verify_credit(str(fewer), run.trusted).ok
    monkeypatch.setattr(credit_proof, "MAX_CHARS", 100)
    with pytest.raises(FormatError, match="the proof of one round has more than 100 characters"):
        proof_of(run)
    monkeypatch.undo()
    monkeypatch.setattr(credit_proof, "MAX_CREDITS", 2)
    assert [item.entry.round for item in proof_of(run).receipts] == [2, 3]


@pytest.mark.parametrize(
    "around",
    [
        lambda text: f"Look: <{text}>, nice!",
        lambda text: "> " + "\n> ".join(text[at : at + 76] for at in range(0, len(text), 76)),
        lambda text: f'"{text}"',
        lambda text: f"{text} {text}",
        lambda text: f"<svg><desc>{text}</desc></svg>",
    ],
)
def test_a_proof_is_found_in_what_stands_around_it(around: Callable[[str], str], run: Run) -> None:
    assert find_proof(around(str(proof_of(run)))) == proof_of(run)


# ---- as it is given to verify ----------------------------------------------------------------------------------------


def test_the_string_and_files_with_it_are_verified_and_what_is_drawn_around_it_is_called_unchecked(
    run: Run, tmp_path: Path
) -> None:
    text = str(proof_of(run))
    assert verify_path(Path(text), trusted=run.trusted).ok
    files = {
        "card.txt": text.encode() + b"\n",
        "card.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR tEXtDescription\x00" + text.encode() + b"aB3dIDAT",
        "card.svg": f"<svg><desc>{text}</desc>a million tokens</svg>".encode(),
        "utf-16.txt": text.encode("utf-16"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert recognise(tmp_path / name).kind is Kind.CREDIT
        report = verify_path(tmp_path / name, trusted=run.trusted)
        assert report.ok and report.kind == "credit" and report.subject == name, report.to_text()
        assert ["was not checked" in note for note in report.notes] == [True]


def test_options_of_a_checkpoint_are_not_ignored_for_a_proof(run: Run) -> None:
    with pytest.raises(InputError, match=r"potluck-credit1\.…: no checkpoint, and there are options"):
        verify_path(Path(str(proof_of(run))), trusted=run.trusted, alone=True)


# ---- what does not ---------------------------------------------------------------------------------------------------


def more_tokens(value: Any) -> None:
    value["credits"][1]["entry"]["tokens"] += 1


def a_round_twice(value: Any) -> None:
    value["credits"].append(value["credits"][-1])


def another_order(value: Any) -> None:
    value["credits"].reverse()


def no_credit(value: Any) -> None:
    value["credits"] = []


def too_many(value: Any) -> None:
    value["credits"] = [{}] * (MAX_CREDITS + 1)


def no_list(value: Any) -> None:
    value["credits"] = {"0": 1}


def more_keys(value: Any) -> None:
    value["credits"][0]["bonus"] = 1


def no_proof(value: Any) -> None:
    value["credits"][0]["proof"] = 7


def no_card(value: Any) -> None:
    value["run_card"] = {}


def no_key(value: Any) -> None:
    value["root_public_key"] = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"


def proofs_exchanged(value: Any) -> None:
    first, second = value["credits"][:2]
    first["proof"], second["proof"] = second["proof"], first["proof"]


EDITS = [
    (more_tokens, "log proof"), (proofs_exchanged, "log proof"), (no_card, "run card"), (no_key, "run card"),
    (a_round_twice, "form"), (another_order, "form"), (no_credit, "form"), (too_many, "form"), (no_list, "form"),
    (more_keys, "form"), (no_proof, "form"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "where"), EDITS, ids=lambda item: getattr(item, "__name__", item))
def test_nobody_makes_more_of_a_proof(edit: Callable[[Any], object], where: str, run: Run) -> None:
    refused(verify_credit(edited(proof_of(run), edit), run.trusted), where)


def refused(report: Report, where: str) -> None:
    assert report.answer is Answer.REFUSED and report.refusals[0].name == where, report.to_text()


def test_credit_of_two_peers_and_entries_that_are_no_credit_make_no_proof(run: Run) -> None:
    for other, said in ((receipts(run, 1)[1], "of one peer"), (Receipt.from_bytes(run.receipt(0)), "credit alone")):
        mixed = CreditProof((receipts(run)[0], other))
        refused(report := verify_credit(str(mixed), run.trusted), "form")
        assert said in report.verdict


def test_a_ledger_that_another_key_signed_and_another_hosts_run_are_refused(run: Run, tmp_path: Path) -> None:
    forged = run.copy(tmp_path)
    forged.ledger_key = fixed_ed25519("someone else's ledger")
    refused(verify_credit(str(proof_of(forged)), run.trusted), "log proof")
    other = build_run(tmp_path / "other", keys=9)
    assert "not confirmed" in verify_credit(str(proof_of(other)), run.trusted).verdict
    mixed = [dataclasses.replace(item, run_card=other.card_envelope) for item in receipts(run)]
    refused(verify_credit(str(CreditProof(tuple(mixed))), run.trusted), "run card")


def test_two_heads_of_one_size_are_refused(run: Run, tmp_path: Path) -> None:
    other = run.copy(tmp_path)
    other.tree = type(run.tree)()
    entries, other.entries = [*run.entries[:-1], run.entries[0]], []
    for entry in entries:
        other.append(entry)
    refused(
        report := verify_credit(str(CreditProof.of([receipts(run)[0], receipts(other)[1]])), run.trusted), "log proof"
    )
    assert "two different heads" in report.verdict


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda text: text[:-1], "cut short"),
        (lambda text: text[: len(text) // 2], "cut short"),
        (lambda text: text[:40] + ("A" if text[40] != "A" else "B") + text[41:], "check digits"),
        (lambda text: closed(b"{}"), "has credits"),
        (lambda text: closed(b"[" * 100_000), "nested deeper"),
        (lambda text: closed(b"\xff"), "not JSON"),
        (lambda text: closed(bytes(MAX_OPENED_BYTES + 1)), "no whole object of at most"),
        (lambda text: closed(b"{}", after=b"more"), "no whole object"),
        (lambda text: PREFIX + "AAAA." + sha256_hex(bytes(3))[:8], "cannot be opened"),
        (lambda text: PREFIX + "A." + "0" * 8, "not base64url"),
        (lambda text: PREFIX, "cut short"),
        (lambda text: "hello", "not a proof of credit"),
        (lambda text: PREFIX * 2000, "cut short"),
        (lambda text: PREFIX + "A" * (3 << 20), "cut short"),
    ],
)  # fmt: skip
def test_what_is_no_whole_proof_is_refused_by_name(make: Callable[[str], str], said: str, run: Run) -> None:
    report = verify_credit(make(str(proof_of(run))), run.trusted)
    refused(report, "form")
    assert said in report.verdict, report.verdict


def test_a_bomb_opens_to_no_more_than_a_proof_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[int]()
    real = canonical.loads

    def loads(data: bytes, *, max_bytes: int) -> Any:
        given.append(len(data))
        return real(data, max_bytes=max_bytes)

    monkeypatch.setattr(credit_proof.canonical, "loads", loads)
    with pytest.raises(FormatError):
        CreditProof.parse(closed(bytes(2 * MAX_OPENED_BYTES)))
    assert not given


def test_two_different_proofs_in_one_text_are_a_question(run: Run) -> None:
    both = f"{proof_of(run)} {CreditProof.of(receipts(run, 1))}"
    with pytest.raises(FormatError, match="2 different proofs"):
        find_proof(both)


@settings(max_examples=40)
@given(place=st.integers(0, 4000), byte=st.integers(0, 255), whole=st.booleans())
def test_changed_bytes_are_answered_with_an_error_of_ours(place: int, byte: int, whole: bool) -> None:
    """In the string, or, when `whole`, in the JSON in it, with check digits that match."""
    text = stored("credit-proof").decode()
    data = bytearray(canonical.dumps(opened(text)) if whole else text.encode())
    data[place % len(data)] = byte
    with contextlib.suppress(PotluckError):
        proof = find_proof(closed(bytes(data)) if whole else data.decode(errors="replace"))
        total = proof.check(proof.open_card())
        assert all(isinstance(entry, CreditEntry) for entry in total.entries)
        assert total.tokens == CreditProof.parse(text).check(proof.open_card()).tokens
