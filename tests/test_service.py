"""`potluck service`: what it writes and calls, and what systemd and launchd make of it; no manager is really asked."""

from __future__ import annotations

import plistlib
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import commands.service
import potluck
from peer.disk.run_lock import RunLock
from peer.link.newcomer import Newcomer
from peer.service import keeping
from peer.service.launchd import property_list
from peer.service.plan import START, ServicePlan, service_name
from peer.service.steps import Finished
from peer.service.unit import unit_text
from protocol import words
from protocol.backoff import Backoff
from protocol.errors import InputError, PartFailed
from tests.kit.command_line import an_invite
from tests.test_words import check_chinese

INVITE = an_invite("127.0.0.1:1", code="wood-for-the-fire")
RUN = INVITE.run[:16]


class FakeShell:
    """What stands for this computer's own."""

    def __init__(self, answers: dict[str, Finished] | None = None) -> None:
        self.ran: list[str] = []
        self._answers = {"systemctl --version": Finished(0, "systemd 257 (257.1)")} | (answers or {})

    def run(self, command: Sequence[str]) -> Finished:
        self.ran.append(shlex.join(command))
        return self._answers.get(self.ran[-1], Finished(0))

    def show(self, command: Sequence[str]) -> int:
        return self.run(command).code


class Desk(NamedTuple):
    """One owner's computer."""

    home: Path
    shell: FakeShell
    type: Callable[..., tuple[int, str, str]]  # exit code, standard output, standard error

    @property
    def unit(self) -> Path:
        return self.home / ".config/systemd/user" / f"{service_name(self.home, RUN)}.service"

    @property
    def invite(self) -> Path:
        return self.home / "service" / f"{RUN}.invite"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    shell = FakeShell()
    for name, value in {"HOME": str(tmp_path), "POTLUCK_HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("peer.service.steps.Shell", lambda: shell)
    monkeypatch.setattr(commands.service, "SYSTEMD_RUNS", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")

    def type_in(*typed: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potluck", *typed])
        with pytest.raises(SystemExit) as end:
            potluck.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    yield Desk(tmp_path, shell, type_in)
    words.choose(None)


# ---- what is written -------------------------------------------------------------------------------------------------


def plan(home: Path, program: str = sys.executable) -> ServicePlan:
    odd = ("--announce", 'a "b" \\c %h $HOME', "--device", "cuda:1")
    return ServicePlan(INVITE, home, (program, *START), odd, {"PYTHONPATH": str(home)})


def words_of(unit: str, key: str) -> list[str]:
    """The words of a line, as systemd.syntax(7) reads them."""
    line = next(line for line in unit.splitlines() if line.startswith(f"{key}="))
    return [word.replace("%%", "%") for word in shlex.split(line.partition("=")[2])]


def test_a_unit_says_what_was_meant_whatever_paths_and_options_hold(tmp_path: Path) -> None:
    home = tmp_path / "my wood 50% $x"
    meant = plan(home, f"{home}/python")
    unit = unit_text(meant, 257)
    program, *arguments = words_of(unit, "ExecStart")
    assert [program, *(word.replace("$$", "$") for word in arguments)] == [*meant.program, "join", *meant.join]
    assert words_of(unit, "Environment") == [f"PYTHONPATH={home}"]
    assert f"\nWorkingDirectory={str(home).replace('%', '%%')}\n" in unit


@pytest.mark.parametrize("bad", ["a\nExecStop=/bin/sh", "back\\", "\x1b[2J"])
def test_what_would_end_a_line_of_a_unit_is_refused(bad: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a unit cannot hold this"):
        ServicePlan(INVITE, tmp_path, (sys.executable,), ("--announce", bad))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_itself_has_nothing_against_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "my wood 50% $x"
    home.mkdir()
    (home / "python").symlink_to(sys.executable)
    path = tmp_path / f"{plan(home).name}.service"
    path.write_text(unit_text(plan(home, f"{home}/python"), 0))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    command = ["systemd-analyze", "--user", "--man=no", "verify", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_unit_starts_again_after_failures_and_not_after_a_no_or_a_leave(tmp_path: Path) -> None:
    unit = unit_text(plan(tmp_path), 254)
    for line in (
        "Restart=on-failure",
        "RestartPreventExitStatus=1",
        "SuccessExitStatus=4 130 143",
        "KillSignal=SIGINT",
    ):
        assert f"\n{line}\n" in unit
    assert "\nRestartSteps=" in unit and "\nRestartMaxDelaySec=" in unit
    old = unit_text(plan(tmp_path), 252)
    assert "RestartSteps" not in old and "\nRestartSec=2min\n" in old


def test_an_agent_of_launchd_survives_the_way_through_its_file(tmp_path: Path) -> None:
    meant = plan(tmp_path / 'a & <b> "c" 木')
    value = plistlib.loads(property_list(meant))
    assert value["ProgramArguments"] == [*meant.program, "service", "run", str(meant.log), *meant.join]
    assert value["KeepAlive"] == {"SuccessfulExit": False} and value["RunAtLoad"] is True
    assert value["EnvironmentVariables"] == meant.environment and value["Label"] == meant.name


# ---- what is done ----------------------------------------------------------------------------------------------------


def test_installing_writes_and_starts_and_the_code_is_for_its_owner_alone(desk: Desk) -> None:
    code, out, err = desk.type("service", "install", str(INVITE), "--yes", "--device", "cpu", "--verbose")
    assert (code, err) == (0, ""), err
    unit = desk.unit.read_text()
    assert words_of(unit, "ExecStart")[1 + len(START) :] == [
        *["join", str(desk.invite), "--yes", "--home", str(desk.home), "--lang", "en"],
        *["--device", "cpu", "--verbose"],
    ]
    assert desk.invite.read_text() == f"{INVITE}\n"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (desk.invite, desk.unit)] == [0o600, 0o600]
    assert str(INVITE) not in unit + out and "wood-for" not in unit + out
    assert desk.shell.ran[1:3] == [
        "systemctl --user daemon-reload",
        f"systemctl --user enable --now {desk.unit.name}",
    ]
    assert "loginctl enable-linger" in out and not any("enable-linger" in command for command in desk.shell.ran)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_dry_run_shows_all_and_does_nothing(platform: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    code, out, _ = desk.type("service", "install", str(INVITE), "--dry-run")
    assert code == 0 and list(desk.home.iterdir()) == []
    assert desk.shell.ran in ([], ["systemctl --version"])
    assert ("run: launchctl bootstrap gui/" in out) == (platform == "darwin")
    assert ("ExecStart=" in out) == (platform == "linux")
    assert str(INVITE) not in out


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ([str(INVITE), "--yes", "--devise", "cpu"], 2, "No such option: --devise"),
        ([str(INVITE), "--yes", "--threads", "many"], 2, "--threads"),
        (["--yes", "--device", "cpu"], 2, "Missing argument 'INVITE'"),
        ([str(INVITE)[:-1], "--yes"], 2, "the invite is damaged"),
    ],
)
def test_what_join_would_refuse_is_refused_before_anything_is_written(
    typed: list[str], code: int, said: str, desk: Desk
) -> None:
    done = desk.type("service", "install", *typed)
    assert done[0] == code and said in done[2]
    assert list(desk.home.iterdir()) == []


def test_a_running_peer_is_not_joined_by_a_second_one(desk: Desk) -> None:
    folder = desk.home / "runs" / RUN
    folder.mkdir(parents=True)
    lock = RunLock(folder / "lock")
    try:
        code, _, err = desk.type("service", "install", str(INVITE), "--yes")
    finally:
        lock.close()
    assert code == 2 and "a peer of this run is running here" in err and not desk.unit.exists()


@pytest.mark.parametrize("agrees", [True, False])
def test_the_owner_is_asked_for_the_terms_unless_they_agreed_before(
    agrees: bool, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(Newcomer, "agree", lambda newcomer, look: asked.append(True) or agrees)
    code, out, _ = desk.type("service", "install", str(INVITE))
    assert (code, asked, desk.unit.exists()) == (0 if agrees else 1, [True], agrees)
    assert ("not installed" in out) == (not agrees)
    (desk.home / "runs" / RUN / "run-card.json").write_text("{}")  # what a peer keeps that has joined
    assert desk.type("service", "install", str(INVITE))[0] == 0
    assert asked == [True]


def test_stop_start_and_uninstall_are_for_the_services_of_one_home(desk: Desk) -> None:
    other = desk.home / "other"
    for home in (desk.home, other):
        assert desk.type("service", "install", str(INVITE), "--yes", "--home", str(home))[0] == 0
    desk.shell.ran.clear()
    for verb in ("stop", "start", "uninstall"):
        assert desk.type("service", verb, "--run", RUN[:4])[0] == 0
    name = desk.unit.name
    said = [command.removeprefix("systemctl --user ") for command in desk.shell.ran if "--version" not in command]
    assert said == [f"stop {name}", f"start {name}", f"disable --now {name}", "daemon-reload", f"reset-failed {name}"]
    assert not desk.unit.exists() and not desk.invite.exists()
    assert (other / "service" / desk.invite.name).exists()
    assert desk.type("service", "stop")[0] == 2, "none is left in this home"
    assert desk.type("service", "stop", "--home", str(other), "--run", "beef")[0] == 2


def test_logs_are_the_journals_or_the_file_that_we_rotate(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.type("service", "install", str(INVITE), "--yes")[0] == 0
    assert desk.type("service", "logs", "--follow")[0] == 0
    assert desk.shell.ran[-1] == f"journalctl --user-unit={desk.unit.name} --lines=200 --follow"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert desk.type("service", "install", str(INVITE), "--yes")[0] == 0
    assert desk.type("service", "logs", "-n", "5")[0] == 0
    assert desk.shell.ran[-1] == shlex.join(["tail", "-n", "5", str(desk.home / "service" / f"{RUN}.log")])


def test_without_systemd_it_is_said_what_to_do_instead(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.service, "SYSTEMD_RUNS", desk.home / "nothing")
    code, _, err = desk.type("service", "install", str(INVITE), "--yes")
    assert code == 2 and "@reboot" in err and "tmux" in err and not desk.unit.exists()
    assert str(INVITE) not in err
    monkeypatch.setattr("platform.release", lambda: "5.15.1-microsoft-standard-WSL2")
    assert "systemd=true" in desk.type("service", "install", str(INVITE), "--yes")[2]


def test_what_systemd_says_against_it_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Finished(1, "Failed to connect to bus: No medium found\n")
    monkeypatch.setattr("peer.service.steps.Shell", lambda: FakeShell({"systemctl --user daemon-reload": said}))
    code, _, err = desk.type("service", "install", str(INVITE), "--yes")
    assert code == 2 and "No medium found" in err and "not by su or sudo" in err


def test_a_plan_is_told_in_chinese(desk: Desk) -> None:
    shown = desk.type("service", "install", str(INVITE), "--dry-run", "--lang", "zh")[1]
    check_chinese(re.sub(r"^    .*$|/\S+|systemctl .*", "", shown, flags=re.MULTILINE))
    assert "（邀请，只有您能读取）" in shown


@pytest.mark.parametrize("verb", ["service", "service install", "service logs", "uninstall"])
def test_help_of_services_is_chinese(verb: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    out = desk.type(*verb.split(), "--help")[1]
    for line in out.splitlines()[1:]:
        line = re.sub(r"^ +(-\S+(, --\S+)*|[A-Za-z_.]+)(?= |$)|<\S+>|\[x[^\]]*\]", "", line)
        check_chinese(re.sub("Linux|macOS|systemd|launchd", "", line))


@pytest.mark.parametrize(
    ("installed", "code"),
    [("import nothing_of_that_name", PartFailed.exit_code), ("def main(): raise SystemExit(1)", 1)],
)
def test_a_potluck_that_an_upgrade_has_half_replaced_fails_and_does_not_say_no(
    installed: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "potluck.py").write_text(installed)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, *START, "join"], capture_output=True, text=True, timeout=60)
    assert done.returncode == code and ("nothing_of_that_name" in done.stderr) == (code != 1)


# ---- what launchd lacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [0, 1, 4, 130, 143])
def test_a_peer_is_started_again_until_it_ends_for_good(last: int) -> None:
    codes = [5, 2, -9, last, 99]
    backoff = Backoff(0.0, 0.0)
    assert keeping.keep_running(lambda: codes.pop(0), threading.Event(), backoff) == last
    assert (codes, backoff.failures) == ([99], 3)


def test_pauses_grow_and_are_short_again_after_a_long_run() -> None:
    now, pauses = [0.0], list[float]()
    lasts = iter([1.0, 1.0, keeping.STEADY_S, 1.0])

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return len(pauses) == 4

    def start() -> int:
        now[0] += next(lasts)
        return 5

    longest = Backoff(10.0, 900.0, draw=lambda least, most: most)
    assert keeping.keep_running(start, Stop(), longest, clock=lambda: now[0]) == 5
    assert pauses == [10.0, 20.0, 10.0, 20.0]


def test_what_a_peer_says_is_kept_with_its_time_and_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LOG_BYTES", 1000)
    log = tmp_path / "service" / "peer.log"
    keeping.keep([sys.executable, "-c", "for i in range(500): print('round', i)"], log)
    files = sorted(log.parent.iterdir())
    assert len(files) == keeping.LOG_FILES + 1 and all(file.stat().st_size <= 1000 for file in files)
    assert re.search(r"^2\d{3}-\d\d-\d\d .* round 499$", log.read_text(), re.MULTILINE)
    assert log.read_text().endswith("it has ended with exit code 0\n")


def test_who_stops_the_service_asks_the_peer_to_leave_and_it_stays_away(tmp_path: Path) -> None:
    peer = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (print('leaving', flush=True), os._exit(5)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    log = tmp_path / "peer.log"
    keeping.keep([sys.executable, "-c", peer], log)
    assert log.read_text().count("leaving") == 1 and "exit code 5" in log.read_text()
