"""Whether a checkpoint is the newest: a ledger head and a coordinator are asked, and neither is believed blindly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protocol import checkpoint, merkle, newest, note
from protocol.errors import CoordinatorAway, FormatError, SignatureError
from protocol.invite import Invite
from protocol.newest import RunNow, by_coordinator, by_head, head_note_in
from protocol.report import Answer, Report
from protocol.verify import verify_checkpoint
from tests.kit.builders import Run, build_run, fixed_ed25519


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"))


def invite(of: Run, **changes: str) -> Invite:
    named = {"run": of.spec.digest, "root": of.root.keyid} | changes
    return Invite(addresses=("127.0.0.1:1",), tls="b" * 64, **named)


def coordinator(run: Run, **changes: object) -> Callable[[int], RunNow]:
    """Answers as the run's own coordinator does, but for `changes`."""

    def ask(size: int) -> RunNow:
        proof = run.tree.consistency_proof(size) if 0 < size < run.tree.size else []
        honest = RunNow(dict(run.payloads), note.sign_head(run.head(), run.ledger_key), tuple(proof))
        return replace(honest, **changes)

    return ask


def verify(run: Run, number: int, rule: newest.Rule, **options: object) -> Report:
    options = {"trusted": run.trusted, "checkpoints_dir": run.checkpoints} | options
    return verify_checkpoint(run.step(number), newest=rule, **options)


def head_of(run: Run, size: int) -> str:
    return note.sign_head(note.LedgerHead(run.head().origin, size, run.tree.root_at(size)), run.ledger_key)


# ---- a ledger head ---------------------------------------------------------------------------------------------------


def test_the_last_entry_of_a_head_is_the_newest(run: Run) -> None:
    report = verify(run, 3, by_head(head_of(run, run.tree.size)))
    assert report.ok, report.to_text()
    assert report.checks[-1].detail == f"the last entry of a ledger of {run.tree.size} leaves"


def test_a_later_head_leaves_open_whether_there_is_a_newer_checkpoint(run: Run) -> None:
    report = verify(run, 2, by_head(head_of(run, run.tree.size)))
    assert report.answer is Answer.INCOMPLETE and report.sound
    assert "4 entries in the ledger came after this checkpoint's" in report.verdict


def test_a_head_older_than_the_checkpoint_says_nothing(run: Run) -> None:
    report = verify(run, 3, by_head(head_of(run, run.tree.size - 1)))
    assert report.answer is Answer.INCOMPLETE
    assert "is older than the one" in report.verdict


def test_a_proof_made_anew_later_does_not_hide_what_came_between(run: Run, tmp_path: Path) -> None:
    """The host can prove an old checkpoint in the newest ledger; its leaf stays where it was."""
    step = tmp_path / "step-000002"
    shutil.copytree(run.step(2), step)
    checkpoint.write_log_proof(step, run.proof(checkpoint.read_log_proof(step).index))
    report = verify_checkpoint(
        step, trusted=run.trusted, checkpoints_dir=run.checkpoints, newest=by_head(head_of(run, run.tree.size))
    )
    assert report.answer is Answer.INCOMPLETE and "4 entries" in report.verdict


def test_a_head_that_the_runs_ledger_did_not_sign_is_refused(run: Run) -> None:
    for head_note in (
        note.sign_head(run.head(), fixed_ed25519("another")),
        note.sign_head(replace(run.head(), origin="potluck/other/0123456789abcdef"), run.ledger_key),
    ):
        report = verify(run, 3, by_head(head_note))
        assert report.answer is Answer.REFUSED and "is not of this checkpoint's run" in report.verdict


def test_two_signed_heads_of_one_size_are_refused(run: Run) -> None:
    inside = checkpoint.read_info(run.step(3)).ledger.size
    for size in (run.tree.size, inside):
        forked = note.sign_head(replace(run.head(), size=size, root=bytes(32)), run.ledger_key)
        report = verify(run, 3, by_head(forked))
        assert report.answer is Answer.REFUSED
        assert f"the ledger signed two different heads of {size} leaves" in report.verdict


def test_a_head_is_found_in_a_note_a_log_proof_and_a_receipt(run: Run) -> None:
    text = head_of(run, run.tree.size)
    assert head_note_in(text.encode()) == text
    assert head_note_in(run.proof(2).to_text().encode()) == text
    assert head_note_in(run.receipt(2)) == text
    for data in (b"", b"hello\n", b"{}", b"\xff\xfe", run.receipt(2)[:-20], b"c2sp.org/tlog-proof@v1\nindex 1\n"):
        with pytest.raises(FormatError):
            head_note_in(data)


# ---- a coordinator ---------------------------------------------------------------------------------------------------


def test_the_newest_that_the_coordinator_names_is_the_newest(run: Run) -> None:
    report = verify(run, 3, by_coordinator(invite(run), coordinator(run)))
    assert report.ok, report.to_text()
    assert "the newest that the coordinator has published" in report.checks[-1].detail


def test_an_older_checkpoint_is_outdated_and_the_newer_one_is_named(run: Run) -> None:
    report = verify(run, 1, by_coordinator(invite(run), coordinator(run)))
    assert (report.answer, report.answer.exit_code, report.ok) == (Answer.OUTDATED, 4, False)
    assert report.verdict == f"outdated: there is a newer one: round 3, payload {run.payloads[3]}"
    assert report.to_json()["answer"] == "outdated"


def test_the_coordinator_can_be_asked_about_one_folder_alone(run: Run) -> None:
    options = {"checkpoints_dir": None, "alone": True}
    assert verify(run, 3, by_coordinator(invite(run), coordinator(run)), **options).ok
    assert verify(run, 2, by_coordinator(invite(run), coordinator(run)), **options).answer is Answer.OUTDATED


def test_an_invite_of_another_run_or_root_is_refused_and_nobody_is_asked(run: Run) -> None:
    def ask(size: int) -> RunNow:
        raise AssertionError("asked")

    for changes in ({"run": "9" * 64}, {"root": "9" * 64}):
        report = verify(run, 3, by_coordinator(invite(run, **changes), ask))
        assert report.answer is Answer.REFUSED and "the invite is for run" in report.verdict


@pytest.mark.parametrize("error", [CoordinatorAway("nobody there"), SignatureError("another certificate")])
def test_a_coordinator_that_cannot_be_asked_leaves_the_question_open(run: Run, error: Exception) -> None:
    def ask(size: int) -> RunNow:
        raise error

    report = verify(run, 3, by_coordinator(invite(run), ask))
    assert report.answer is Answer.INCOMPLETE and "could not be asked" in report.verdict


def refused(run: Run, number: int, **changes: object) -> str:
    report = verify(run, number, by_coordinator(invite(run), coordinator(run, **changes)))
    assert report.answer is Answer.REFUSED, report.to_text()
    return report.verdict


def test_a_coordinator_that_published_another_checkpoint_of_the_round_is_told_apart(run: Run) -> None:
    assert "of round 3 the coordinator has published 0000" in refused(run, 3, published={3: "0" * 64})
    assert "of round 2 the coordinator has published none" in refused(run, 2, published={3: run.payloads[3]})


def test_a_coordinator_whose_ledger_is_another_history_is_refused(run: Run, tmp_path: Path) -> None:
    tree = merkle.Tree(merkle.leaf_hash(b"%d" % index) for index in range(run.tree.size + 4))
    head = note.LedgerHead(run.head().origin, tree.size, tree.root)
    proof = tuple(tree.consistency_proof(run.tree.size))
    forked = note.sign_head(head, run.ledger_key)
    assert "does not begin with this one" in refused(run, 3, head_note=forked, consistency=proof)
    assert "does not begin with this one" in refused(run, 3, head_note=forked, consistency=())
    assert "has 5 leaves" in refused(run, 3, head_note=head_of(run, 5), consistency=())
    signed_by_another = note.sign_head(run.head(), fixed_ed25519("another"))
    assert "not signed by the key" in refused(run, 3, head_note=signed_by_another)
    assert "not signed by the key" in refused(run, 1, head_note=signed_by_another), "not merely outdated"


def test_what_a_coordinator_leaves_out_leaves_the_question_open(run: Run) -> None:
    for changes in ({"published": {}}, {"published": {0: run.payloads[0]}}, {"head_note": "", "consistency": ()}):
        report = verify(run, 3, by_coordinator(invite(run), coordinator(run, **changes)))
        assert report.answer is Answer.INCOMPLETE, report.to_text()
    outdated = verify(run, 2, by_coordinator(invite(run), coordinator(run, head_note="", consistency=())))
    assert outdated.answer is Answer.OUTDATED, "an older coordinator names a newer one all the same"


def test_a_checkpoint_that_does_not_hold_is_refused_whatever_the_coordinator_says(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.step(3), tmp_path / "step-000003")
    (tmp_path / "step-000003/model.tlog-proof").unlink()
    report = verify_checkpoint(
        tmp_path / "step-000003",
        trusted=run.trusted,
        checkpoints_dir=run.checkpoints,
        newest=by_coordinator(invite(run), coordinator(run)),
    )
    assert report.answer is Answer.REFUSED
    assert report.checks[-1].name == "newest" and str(report.checks[-1].status) == "not checked"
