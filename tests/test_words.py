"""What people read in Chinese: all is in the catalogue and found in messages, and real screens show no English."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import potluck
from coordinator.host_screen import HostScreen, run_view
from lab import REPOSITORY
from peer.link.client import CoordinatorClient
from peer.screen import messages
from protocol import words
from protocol.invite import Invite
from protocol.keys import PeerIdentity, public_pem
from protocol.status import Alarm, EvaluatedRound, LedgerStatus, PeerStatus, RunStatus
from protocol.words import Catalogue
from tests.kit import builders
from tests.kit.texts_in_source import texts

COMMANDS = ("{} install --force", "{} uninstall", "{} -m pip", "uv ", "pipx ", "sudo ", "potluck ")  # typed so by all
SAID_ELSEWHERE = (
    "# ---- single words of the screens"  # from here on the entries are not found in the source by their form
)


def untold() -> list[str]:
    """What has no Chinese, as it would stand in the catalogue."""
    known, missing = words.catalogue().entries, dict[str, list[str]]()
    for text, place in texts().items():
        if (
            text not in known
            and not text.startswith(COMMANDS)
            and re.search("[A-Za-z]{2}", re.sub(r"\{\w*\}", "", text))
        ):
            missing.setdefault(place.rpartition(":")[0], []).append(text)
    return [f"# ---- {file}\n" + "\n\n\n".join(lines) + "\n\n" for file, lines in missing.items()]


def test_everything_that_people_read_is_in_the_catalogue() -> None:
    missing = untold()
    assert not missing, "add to protocol/zh.txt, with the Chinese in the empty lines:\n\n" + "\n".join(missing)
    nameless = [english for english in messages._MESSAGES.values() if english.strip() not in words.catalogue().entries]
    assert not nameless


def test_a_text_that_is_not_in_the_catalogue_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = dict(words.catalogue().entries)
    del entries["{}: the disk is full"]
    monkeypatch.setattr(words, "catalogue", lambda: Catalogue(entries))
    assert untold() == ["# ---- protocol/disk.py\n{}: the disk is full\n\n"]


def test_the_catalogue_holds_nothing_that_is_said_no_more() -> None:
    text = (REPOSITORY / "protocol" / "zh.txt").read_text(encoding="utf-8").partition(SAID_ELSEWHERE)[0]
    ours, lines = words.parse(text), [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) == 2 * len(ours), f"twice: {[line for line in lines[::2] if lines[::2].count(line) > 1]}"
    said = texts().keys() | {english.strip() for english in messages._MESSAGES.values()}
    assert not [english for english in ours if english.strip() not in said]


def test_each_entry_says_the_same_values_in_both_languages() -> None:
    for english, chinese in words.catalogue().entries.items():
        names, told = re.findall(r"\{(\w*)\}", english), re.findall(r"\{(\w*)\}", chinese)
        numbered = {str(number) for number in range(len(names))}
        assert sorted(told) == sorted(names) or (set(told) == numbered and len(told) == len(numbered)), english
        assert chinese != english and re.search("[\u3000-\u9fff\uff00-\uffef]|^[{}]", chinese), english


def test_no_english_stop_stands_between_chinese_words() -> None:
    wrong = {
        english: chinese
        for english, chinese in words.catalogue().entries.items()
        if re.search(r"[\u4e00-\u9fff][,;:!?](?!//)|[,;!?][\u4e00-\u9fff]", chinese)
    }
    assert not wrong


# ---- how a finished message is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        (
            "/home/my files/a.jsonl: line 3: not UTF-8: invalid start byte",
            "/home/my files/a.jsonl：第 3 行：不是 UTF-8：invalid start byte",
        ),
        ("lock: cannot be read: Permission denied", "lock：无法读取：没有权限"),
        ("a: missing; b c: not signed for; and 2 more", "a：缺失；b c：未经签名；另有 2 项"),
        (
            "no coordinator at [::1]:4700: [Errno 111] Connection refused",
            "[::1]:4700 处没有协调者：连接被拒绝（错误号 111）",
        ),
        ("run.toml: inner.lr: Input should be greater than 0 (got '-1')", "run.toml：inner.lr：应大于 0（实为 '-1'）"),
        ("this computer's clock is 5 min 12 s behind the coordinator's", "本机时钟比协调者的慢 5 分 12 秒"),
        ("left", "已退出"),
        ("  ab12  12 tokens in 3 rounds, seen 5 s ago", "  ab12  12 个词元，共 3 轮，5 秒前在线"),
        ("refused: 文件: files: missing", "拒绝：文件：files：缺失"),
        ("round table is set", "round table is set"),
        ("files", "文件"),
        ("x", "x"),
        ("", ""),
        ("{} of {}", "{} of {}"),
    ],
)  # fmt: skip
def test_a_finished_message_is_told_with_its_values(english: str, chinese: str) -> None:
    assert words.told(english, "zh") == chinese
    assert words.told(english, "en") == english


def test_a_name_that_is_a_word_of_the_screens_stays_a_name() -> None:
    assert words.told("files: round 2 of 9, 7 tokens agreed", "zh") == "files：第 2 轮（共 9 轮），已确认 7 个词元"


def test_the_longest_text_that_fits_is_taken() -> None:
    catalogue = Catalogue({"{}: gone": "{}：没了", "{}: line {}: gone": "{}：第 {} 行：没了", "all gone": "全没了"})
    assert catalogue.told("a: line 2: gone") == "a：第 2 行：没了"
    assert catalogue.told("a: all gone") == "a：全没了"


@pytest.mark.parametrize(
    "hostile",
    [
        "round " * 1500, ": " * 4000, "a: b; (c), " * 700, "{" * 5000, "needs " * 1000, "\u202e" * 9000, "x" * 100_000,
        "{0}{1}" * 900,
    ],
    ids=lambda text: text[:8].encode("unicode_escape").decode(),
)  # fmt: skip
def test_what_strangers_send_costs_a_bounded_number_of_looks(hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    real = words.Template.fit

    def fit(template: words.Template, message: str) -> list[str] | None:
        nonlocal looks
        looks += 1
        return real(template, message)

    monkeypatch.setattr(words.Template, "fit", fit)
    assert isinstance(words.told(hostile, "zh"), str)
    assert looks <= words.MOST_LOOKUPS * len(words.catalogue().entries)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "C.UTF-8"}, "en"),
    ],
)
def test_the_locale_says_the_language_unless_it_was_chosen(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert words.language_of_user() == expected
    try:
        words.choose("en" if expected == "zh" else "zh")
        assert words.language_of_user() != expected
    finally:
        words.choose(None)


# ---- real screens ----------------------------------------------------------------------------------------------------

NAMES = {
    "CPU",
    "Ctrl",
    "Ed",
    "FLOPs",
    "INVITE",
    "JSON",
    "PEM",
    "UTF",
    "auto",
    "cpu",
    "cuda",
    "en",
    "join",
    "kill",
    "leave",
}
NAMES |= {"libp", "mps", "potluck", "tiny", "verify", "zh"}


def check_chinese(screen: str) -> None:
    """Nothing but names, paths, numbers and commands is Latin."""
    plain = re.sub(r"`[^`]*`|'[^']*'|<[^>]*>", " ", screen)
    found = {
        word for word in re.findall(r"[^\s（），。：；“”「」\u3000-\u9fff]+", plain) if re.search("[A-Za-z]{2}", word)
    }
    english = {word for word in found if re.fullmatch("[A-Za-z]+[,.:;]?", word) and word.rstrip(",.:;") not in NAMES}
    assert not english, screen


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line, to its end, as a user with a Chinese locale starts it."""
    for name in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    monkeypatch.setenv("POTLUCK_HOME", str(tmp_path))

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["potluck", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            potluck.main()
        said = capsys.readouterr()
        return Done(int(end.value.code or 0), said.out, said.err)

    return run


def test_a_verifier_reads_chinese(tmp_path: Path, run: Callable[..., Done]) -> None:
    made = builders.build_run(tmp_path / "run", rounds=2)
    (tmp_path / "key.pub").write_bytes(public_pem(made.root.public_key))
    key, step = ["--key", str(tmp_path / "key.pub")], made.step(2)
    good = run("verify", step, *key, "--newest-by", step / "model.tlog-proof")
    stranger = run("verify", step)
    (made.step(1) / "model.tlog-proof").unlink()
    incomplete = run("verify", step, *key)
    (step / "junk.txt").touch()
    weights = next((step / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    tampered = run("verify", step, *key)
    assert [done.code for done in (good, stranger, tampered)] == [0, 1, 1] and incomplete.code in (1, 3)
    for done in (good, stranger, incomplete, tampered):
        assert done.stderr == ""
        check_chinese(done.stdout)
    assert json.loads(run("verify", step, *key, "--json").stdout)["verdict"].startswith("refused: ")


def test_an_owner_reads_chinese(tmp_path: Path, run: Callable[..., Done]) -> None:
    folder = tmp_path / "runs" / ("ab" * 8)
    folder.mkdir(parents=True)
    reasons = [
        "left",
        "no data from 12D3Kooab for 12 s",
        "not heard for 30 s",
        "at round 7",
        "has done nothing for rounds",
    ]
    left_out = [["12D3Kooab12cd34", reason] for reason in reasons]
    line = {"round": 41, "members": 3, "tokens": 9216, "waited_s": 0.2, "attempts": 1, "took_part": True}
    (folder / "rounds.jsonl").write_text(json.dumps(line | {"left_out": left_out, "time": 0.0}) + "\n")
    status, left = run("status"), run("leave")
    assert (status.code, left.code) == (0, 0) and "已退出" in status.stdout
    for done in (status, left):
        check_chinese(done.stdout)
    assert "no data from" in run("status", "--json").stdout
    PeerIdentity.load_or_create(tmp_path / "identity")
    restored = run("identity", "restore", tmp_path / "identity")
    assert restored.code == 0
    check_chinese(restored.stdout.replace(restored.stdout.split()[-1], ""))


@pytest.mark.parametrize("encoding", ["ascii", "gb2312", "utf-8"])
def test_a_terminal_that_lacks_a_character_ends_nothing(encoding: str, tmp_path: Path) -> None:
    made = builders.build_run(tmp_path / "run", rounds=1)
    environment = os.environ | {"LC_ALL": "zh_CN", "PYTHONIOENCODING": encoding, "POTLUCK_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "potluck", "verify", str(made.step(1))], capture_output=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stderr) == (1, b"") and b"checkpoint.json" in done.stdout


def a_status() -> RunStatus:
    peers = (
        PeerStatus(peer_id="12D3Kooab12cd34", credit_tokens=5, rounds=2, last_seen_s=3.0),
        PeerStatus(peer_id="12D3Kooee12cd35"),
    )
    alarm = Alarm(round=4, held_out_loss=None, published_round=2, published_loss=3.0, held_back=2)
    evaluation = EvaluatedRound(round=2, held_out_loss=3.0, tokens=9, time=1.0)
    ledger = LedgerStatus(size=7, root="b" * 64)
    now = {"round": 4, "rounds": 0, "inner_lr": 5e-05, "outer_lr": 0.7}
    return RunStatus(
        name="tiny", run="a" * 64, peers=peers, evaluations=(evaluation,), ledger=ledger, alarm=alarm, **now
    )


@pytest.mark.parametrize("rounds", [0, 9])
def test_who_asks_how_a_run_stands_reads_chinese(
    rounds: int, run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CoordinatorClient, "get_run", lambda client: None)
    monkeypatch.setattr(CoordinatorClient, "status", lambda client: a_status().model_copy(update={"rounds": rounds}))
    done = run("status", str(Invite(addresses=("127.0.0.1:1",), run="a" * 64, tls="b" * 64, root="c" * 64)))
    assert done.code == 0 and "警报：" in done.stdout
    check_chinese(done.stdout.replace("NaN", ""))


def test_a_host_reads_chinese(run: Callable[..., Done], capsys: pytest.CaptureFixture[str]) -> None:
    screen = HostScreen(as_json=False)
    screen._console.width = 200
    screen.status(a_status())
    screen._console.print(run_view(a_status()))
    screen.ended(a_status())
    screen.ended(a_status().model_copy(update={"finished": True, "alarm": None}))
    check_chinese(capsys.readouterr().err.replace("NaN", ""))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["join", "hello"], 2),
        (["join", "potluck1.eyJ.12345678"], 2),
        (["join", "/"], 2),
        (["join"], 2),
        (["join", "--no-such-option"], 2),
        (["status", "nothing"], 2),
        (["leave", "--run", "nothing"], 2),
        (["verify", "/nothing"], 2),
        (["verify", "/", "--key", "12"], 2),
        (["identity", "backup", "/nothing/at/all"], 2),
        (["identity", "restore", "/nothing"], 2),
        (["dance"], 2),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_refusal_is_chinese(arguments: list[str], code: int, run: Callable[..., Done]) -> None:
    done = run(*arguments)
    assert (done.code, done.stdout) == (code, "")
    assert "错误：" in done.stderr
    check_chinese(done.stderr.replace("[OPTIONS]", "").replace("COMMAND [ARGS]", ""))


@pytest.mark.parametrize("verb", ["", "join", "leave", "verify", "status", "identity", "host", "data", "data prepare"])
def test_help_is_chinese(verb: str, run: Callable[..., Done]) -> None:
    done = run(*verb.split(), "--help")
    assert done.code == 0 and done.stdout.startswith("用法：")
    for line in done.stdout.splitlines()[1:]:
        check_chinese(re.sub(r"^ +(-\S+(, --\S+)*|[A-Za-z_.]+)(?= |$)|\[x[^\]]*\]|[A-Z]+\|[A-Z]+", "", line))
