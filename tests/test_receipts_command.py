"""`potluck receipts`: one's own credit in all runs, each proof checked; a card that `potluck verify` checks."""

from __future__ import annotations

import io
import json
import re
import warnings
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import potluck
from peer.screen import card_fonts
from peer.screen.credit_card import CreditCard, amount_key
from peer.screen.messages import text
from protocol import words
from protocol.credit_proof import CreditProof, find_proof
from protocol.errors import PotluckError
from protocol.keys import PeerIdentity
from protocol.receipt import MAX_RECEIPT_BYTES, Receipt
from tests.kit.builders import Run, build_run
from tests.kit.credited import add_run, settle


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"), name="wood")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("second"), name="birch", rounds=1, keys=7)


@pytest.fixture
def home(run: Run, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    add_run(home, run)
    settle(home, run.peers[0])
    return home


def typed(home: Path, *arguments: str | Path) -> Any:
    return CliRunner().invoke(potluck.app, [*map(str, arguments), "--home", str(home), "--lang", "en"])


def told(home: Path, *arguments: str) -> dict[str, Any]:
    return json.loads(typed(home, "receipts", "--json", *arguments).stdout)


def tokens_of(run: Run) -> int:
    return sum(agreed.weights[run.peers[0].peer_id] for agreed in run.agreements.values())


# ---- the table -------------------------------------------------------------------------------------------------------


def test_all_runs_are_shown_with_credit_ledger_head_and_whether_the_proofs_hold(
    home: Path, run: Run, second: Run
) -> None:
    add_run(home, second)
    done = typed(home, "receipts")
    assert done.exit_code == 0
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["run", "rounds", "tokens", "ledger", "head", "proof", "holds"]
    birch, wood = sorted(rows[:2])
    assert wood.split() == ["wood", "3", f"{tokens_of(run):,}", "14", "leaves,", f"{run.tree.root.hex()[:16]}…", "yes"]
    assert birch.split()[:3] == ["birch", "1", f"{tokens_of(second):,}"] and birch.endswith("yes")
    assert f"birch: credit to {second.peers[0].peer_id}, which is not the identity of this home" in rows
    assert f"{tokens_of(run):,} tokens to you in all" in rows, "what is another's is not"
    (only,) = told(home, "--run", "wood")["runs"]
    assert (only["rounds"], only["tokens"], only["holds"]) == (3, tokens_of(run), True)
    assert only["ledger"]["root"] == run.tree.root.hex()


def test_for_scripts_tokens_are_those_of_this_home_and_others_stand_apart(home: Path, run: Run, second: Run) -> None:
    add_run(home, second)
    answer = told(home)
    birch, wood = sorted(answer["runs"], key=lambda item: item["name"])
    assert answer["tokens"] == wood["tokens"] == tokens_of(run) and wood["others"] == {}
    assert (birch["tokens"], birch["flops"], birch["rounds"], birch["peers"]) == (0, 0, 0, [])
    assert birch["others"] == {second.peers[0].peer_id: tokens_of(second)}
    assert birch["ledger"]["root"] == second.tree.root.hex()


def test_a_home_without_receipts_says_when_they_come(tmp_path: Path) -> None:
    done = typed(tmp_path, "receipts")
    assert done.exit_code == 0 and done.stdout.startswith("no receipts here yet: ")
    assert told(tmp_path) == {"peer_id": None, "tokens": 0, "runs": []}
    assert not (tmp_path / "identity").exists(), "who asks is given none"


def test_a_damaged_receipt_is_named_counts_for_nothing_and_makes_the_answer_no(home: Path, run: Run) -> None:
    folder = next((home / "runs").iterdir()) / "receipts"
    value = json.loads((folder / "round-000002.json").read_bytes())
    value["entry"]["tokens"] += 1000
    (folder / "round-000002.json").write_text(json.dumps(value))
    (folder / "damaged").mkdir()
    (folder / "damaged" / "round-000001.json").write_bytes(b"")
    done = typed(home, "receipts")
    assert done.exit_code == 1 and "  no\n" in done.stdout
    assert "wood: round-000002.json: log proof: " in done.stdout
    assert "wood: damaged/round-000001.json: set aside earlier" in done.stdout
    (only,) = told(home)["runs"]
    assert (only["rounds"], only["holds"]) == (2, False)
    assert only["damaged"] == ["round-000002.json", "damaged/round-000001.json"]
    said = ("round-000002.json", "`potluck join` sets it aside and fetches it again", "move it out of the folder")
    refused(typed(home, "receipts", "--card", home / "card.txt"), *said)
    (folder / "round-000002.json").rename(home / "round-000002.json")
    assert typed(home, "receipts", "--card", home / "card.txt").exit_code == 0, "as the hint says"
    assert "in 2 rounds" in typed(home, "verify", home / "card.txt").stdout


def test_receipts_by_a_key_that_was_not_confirmed_do_not_hold_until_it_is(second: Run, tmp_path: Path) -> None:
    add_run(tmp_path, second, trusted=False)
    done = typed(tmp_path, "receipts")
    assert done.exit_code == 1
    assert f"birch: signed by a key that you have not confirmed: {second.root.keyid}" in done.stdout
    settle(tmp_path, second.peers[0])
    refused(typed(tmp_path, "receipts", "--card", tmp_path / "card.txt"), second.root.keyid, "name it with --key")
    assert typed(tmp_path, "receipts", "--key", second.root.keyid).exit_code == 0


def refused(done: Any, *said: str) -> None:
    assert isinstance(done.exception, PotluckError), done.output
    assert all(part in f"{done.exception.message} {done.exception.hint}" for part in said), done.exception.message


# ---- the card --------------------------------------------------------------------------------------------------------


def test_a_card_is_checked_by_verify_in_each_of_its_forms_and_by_its_string(home: Path, run: Run) -> None:
    for suffix in (".svg", ".png", ".txt"):
        file = home / f"card{suffix}"
        done = typed(home, "receipts", "--card", file)
        assert done.exit_code == 0 and done.stdout.splitlines()[0] == str(file)
        checked = typed(home, "verify", file)
        assert checked.exit_code == 0, checked.output
        assert f"{tokens_of(run)} tokens to {run.peers[0].peer_id}, in 3 rounds" in checked.stdout
        refused(typed(home, "receipts", "--card", file), "is there already", "choose another name")
    assert typed(home, "verify", (home / "card.txt").read_text()).exit_code == 0
    assert typed(home.parent / "stranger", "verify", home / "card.png").exit_code == 1
    spoiled = (home / "card.svg").read_text().replace("potluck-credit1.e", "potluck-credit1.f")
    (home / "spoiled.svg").write_text(spoiled)
    assert "check digits" in typed(home, "verify", home / "spoiled.svg").stdout


def test_pictures_are_of_their_kind_and_carry_the_proof_and_nothing_from_outside(home: Path, run: Run) -> None:
    for suffix in (".svg", ".png"):
        assert typed(home, "receipts", "--card", home / f"card{suffix}").exit_code == 0
    image = Image.open(io.BytesIO((home / "card.png").read_bytes()))
    assert image.size == (1200, 630) and find_proof(image.text["Description"])
    svg = (home / "card.svg").read_text()
    document = xml.dom.minidom.parseString(svg)
    (described,) = document.getElementsByTagName("dc:description")
    assert described.firstChild.data == image.text["Description"]
    assert not document.getElementsByTagName("script") and not document.getElementsByTagName("image")
    assert not re.search(r"href=\"(?!#)", svg), "it fetches nothing"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "svg"])
def test_a_picture_that_lost_its_proof_is_told_so_whatever_its_name(kind: str, tmp_path: Path) -> None:
    lost, data = tmp_path / "lost", io.BytesIO(b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="4"/>')
    if kind != "svg":
        Image.new("RGB", (4, 4)).save(data, kind)
    lost.write_bytes(data.getvalue())
    refused(typed(tmp_path, "verify", lost), "this picture has no proof string in it", "ask for the string itself")


def test_a_proof_behind_a_large_picture_is_found(home: Path, run: Run) -> None:
    assert typed(home, "receipts", "--card", home / "card.txt").exit_code == 0
    picture = b"\x89PNG\r\n\x1a\n" + bytes(MAX_RECEIPT_BYTES)
    (home / "saved.png").write_bytes(picture + (home / "card.txt").read_bytes())
    assert typed(home, "verify", home / "saved.png").exit_code == 0


def test_a_card_is_of_one_run_and_of_the_identity_that_is_here(home: Path, run: Run, second: Run) -> None:
    card = home / "card.txt"
    refused(typed(home, "receipts", "--card", home / "card.gif"), ".svg, .png or .txt")
    add_run(home, second)
    refused(typed(home, "receipts", "--card", card), "several here", "--run", "wood")
    refused(typed(home, "receipts", "--card", card, "--run", "birch"), "no receipt of credit to", run.peers[0].peer_id)
    assert typed(home, "receipts", "--card", card, "--run", "wood").exit_code == 0
    (home / "identity").unlink()
    refused(typed(home, "receipts", "--card", home / "other.txt", "--run", "wood"), "no identity in this home")
    refused(typed(home / "nobody", "receipts", "--card", card.with_name("x.txt")), "no receipt of credit here")


def test_without_a_font_for_chinese_the_card_is_in_english_and_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card_fonts, "chinese_font", lambda: None)
    try:
        arguments = ["receipts", "--card", str(home / "card.svg"), "--home", str(home), "--lang", "zh"]
        done = CliRunner().invoke(potluck.app, arguments)
    finally:
        words.choose(None)
    assert done.exit_code == 0 and "没有安装中文字体" in done.stdout


def a_card(run: Run) -> CreditCard:
    return CreditCard.of(CreditProof.of([Receipt.from_bytes(run.receipt(2))]))


def test_what_is_drawn_is_what_the_proof_shows(run: Run) -> None:
    card, head = a_card(run), run.head()
    assert (card.run, card.tokens, card.rounds, card.peer_id) == ("wood", 1024, 1, run.peers[0].peer_id)
    assert (card.origin, card.leaves, card.root) == (head.origin, head.size, head.root.hex())
    with pytest.raises(PotluckError):
        forged = replace(Receipt.from_bytes(run.receipt(2)), entry=run.entries[2].model_copy(update={"tokens": 10**9}))
        CreditCard.of(CreditProof.of([forged]))


@pytest.mark.parametrize(
    "model", ["</text><script>alert(1)</script>", "$x^2$ \\alpha", "-->" * 9, "模型🎉\u202e", "x" * 200]
)
def test_a_models_name_is_drawn_as_it_is_whatever_it_is(model: str, run: Run) -> None:
    card = replace(a_card(run), model=model, tokens=2**53 - 1, run="w" * 63)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = card.draw(".svg", "en")
    document = xml.dom.minidom.parseString(svg)
    assert not document.getElementsByTagName("script")


@pytest.mark.parametrize("language", words.LANGUAGES)
def test_amounts_are_told_in_words_that_people_understand(language: str) -> None:
    for tokens, key, count in ((0, "card-lines", ""), (900, "card-pages", "2"), (300_000, "card-novels", "2")):
        assert amount_key(tokens) == (key, count)
        assert count in text(key, language, count=count, rounds=1)
    assert amount_key(2**53 - 1) == ("card-novels", "69,000,000,000")


# ---- identity, as it is typed ----------------------------------------------------------------------------------------


def test_an_identity_is_exported_lost_and_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.identity_export.LOG2_N", 12)
    phrase = ["--passphrase-file", tmp_path / "phrase"]
    (tmp_path / "phrase").write_text("when everyone brings wood\n")
    home, file = tmp_path / "home", tmp_path / "me.json"
    refused(typed(home, "identity", "export", file, *phrase), "there is no identity yet")
    me = typed(home, "identity", "show").stdout.strip()
    done = typed(home, "identity", "export", file, *phrase)
    assert done.exit_code == 0 and done.stdout.splitlines()[0] == f"{me} -> {file}"
    refused(typed(home, "identity", "export", file, *phrase), "is there already", "--replace")
    assert typed(home, "identity", "export", file, "--replace", *phrase).exit_code == 0
    (home / "identity").unlink()
    assert me in typed(home, "identity", "import", file, *phrase).stdout.splitlines()
    other = typed(home, "identity", "new").stdout.splitlines()[-1]
    refused(typed(home, "identity", "import", file, *phrase), "another identity is here", "--replace")
    done = typed(home, "identity", "import", file, "--replace", *phrase)
    assert me in done.stdout.splitlines() and typed(home, "identity", "show").stdout.strip() == me
    assert PeerIdentity.load_or_create(home / f"identity.{other[-8:]}").peer_id == other
    refused(typed(home, "identity", "restore", file), "an export, under a passphrase", "potluck identity import")
    assert typed(home, "identity", "backup", tmp_path / "plain").exit_code == 0
    refused(typed(home, "identity", "import", tmp_path / "plain"), "a plain backup", "potluck identity restore")
