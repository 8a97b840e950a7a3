"""`potluck uninstall`: what is Potluck's goes after it was shown, what proves credit stays, all else is not touched."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import potluck
from peer.disk import peer_folder
from peer.disk.footprint import look, others
from peer.disk.run_lock import RunLock
from peer.service.plan import service_name
from protocol.keys import PeerIdentity
from tests.test_service import FakeShell

RUN = "ab" * 8
MINE = {  # the owner's
    "my-thesis.txt",
    "identity.pdf",
    "identity.portrait",
    f"runs/{RUN}/my-plot.png",
    "runs/cdcdcdcdcdcdcdcd/model.ckpt",
    "runs/shakespeare/run.toml",
    "service/mine.txt",
}
TypeIn = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a run, receipts, a service's invite, and files that are not Potluck's, beside a folder elsewhere."""
    home = tmp_path / "home"
    for name, size_bytes in {
        "my-thesis.txt": 5,
        f"runs/{RUN}/run-card.json": 10,
        f"runs/{RUN}/base-model/model.safetensors": 3_000_000,
        f"runs/{RUN}/receipts/000001.json": 10,
        f"runs/{RUN}/my-plot.png": 10,
        "runs/cdcdcdcdcdcdcdcd/model.ckpt": 10,
        "identity.pdf": 10,
        "identity.portrait": 10,
        "runs/shakespeare/run.toml": 10,
        f"service/{RUN}.invite": 10,
        f"service/{RUN}.log.1": 10,
        "service/mine.txt": 10,
        "limits.toml": 10,
        "traffic.json": 10,
        f"runs/{RUN}/paused.json": 10,
        f"runs/{RUN}/.certificate.potluck.new": 10,
        "../elsewhere/data": 10,
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(bytes(size_bytes))
    for name in ("identity", "identity.4xK9abcd"):
        (home / name).write_bytes(PeerIdentity.generate().to_bytes())
    (home / "trusted.json").write_text('{"roots":{}}')
    (home / "runs" / RUN / "data").symlink_to(tmp_path / "elsewhere")
    return home


@pytest.fixture
def type_in(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> TypeIn:
    monkeypatch.setenv("HOME", str(home.parent / "user"))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setattr("peer.service.steps.Shell", FakeShell)

    def type_in(*typed: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["potluck", "uninstall", "--home", str(home), *typed])
        with pytest.raises(SystemExit) as end:
            potluck.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return type_in


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_all_goes_but_what_proves_credit_and_what_is_not_ours(home: Path, type_in: TypeIn) -> None:
    code, out, _ = type_in("--yes")
    assert code == 0 and f"goes: {home}/runs/{RUN}/base-model (3.0 MB)" in out
    kept = {"identity", "identity.4xK9abcd", f"runs/{RUN}/receipts/000001.json"}
    assert files(home) == kept | MINE
    told = {line.removeprefix("stays: ").removesuffix(", which is not Potluck's") for line in out.splitlines()}
    apart = {
        "runs/cdcdcdcdcdcdcdcd/model.ckpt": "runs/cdcdcdcdcdcdcdcd",
        "runs/shakespeare/run.toml": "runs/shakespeare",
    }
    assert {str(home / apart.get(name, name)) for name in MINE} <= told
    assert type_in("--yes", "--identity")[0] == 0 and files(home) == MINE, "what it kept, it knows again"
    assert files(home.parent / "elsewhere") == {"data"}, "no link was followed"


def test_with_the_identity_nothing_of_ours_is_left(home: Path, type_in: TypeIn) -> None:
    assert type_in("--yes", "--identity")[0] == 0
    assert files(home) == MINE
    for name in files(home):
        (home / name).unlink()
    for name in ("shakespeare", "cdcdcdcdcdcdcdcd"):
        (home / "runs" / name).rmdir()
    assert type_in("--yes")[0] == 0 and not home.exists()


@pytest.mark.parametrize("linked", ["runs", f"runs/{RUN}"])
def test_what_a_link_leads_to_stays(linked: str, home: Path, type_in: TypeIn) -> None:
    (home / linked).rename(home.parent / "big-disk")
    (home / linked).symlink_to(home.parent / "big-disk")
    before = files(home.parent / "big-disk")
    code, out, _ = type_in("--yes", "--identity")
    assert code == 0 and f"goes: {home / linked}, a link; what it leads to stays" in out
    assert files(home.parent / "big-disk") == before and not (home / linked).is_symlink()


@pytest.mark.parametrize(("typed", "code"), [(["--dry-run"], 0), ([], 1)])
def test_nothing_goes_unasked(
    typed: list[str], code: int, home: Path, type_in: TypeIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typer, "confirm", lambda question: False)
    before = files(home)
    done = type_in(*typed)
    assert (done[0], files(home)) == (code, before) and "together 3.0 MB" in done[1]


def test_nothing_goes_while_a_peer_runs(home: Path, type_in: TypeIn) -> None:
    lock = RunLock(home / "runs" / RUN / "lock")
    before = files(home)
    try:
        code, _, err = type_in("--yes")
        shown = type_in("--dry-run")
    finally:
        lock.close()
    assert shown[0] == 0 and "together 3.0 MB" in shown[1], "to look is allowed"
    assert code == 2 and "a peer is running here" in err and files(home) == before


def test_its_services_go_first(home: Path, type_in: TypeIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    shell, name = FakeShell(), service_name(home, RUN)
    monkeypatch.setattr("peer.service.steps.Shell", lambda: shell)
    unit = home.parent / "user/.config/systemd/user" / f"{name}.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    code, out, _ = type_in("--yes")
    assert code == 0 and f"goes: the service {name}" in out and not unit.exists()
    assert f"systemctl --user disable --now {name}.service" in shell.ran


@pytest.mark.parametrize("name", ["identity", "trusted.json", "exported.json", f"service/{RUN}.invite", f"runs/{RUN}"])
def test_what_has_our_name_and_is_something_else_stays(name: str, home: Path, type_in: TypeIn) -> None:
    other = home.parent / "other"
    (other / name).mkdir(parents=True)
    (other / name / "thesis.txt").touch()
    assert type_in("--yes", "--identity", "--home", str(other))[0] == 0
    assert files(other) == {f"{name}/thesis.txt"}


def test_what_a_real_peer_keeps_is_known(tmp_path: Path) -> None:
    """Of each name that is listed where a peer's folder is described."""
    run = tmp_path / "runs" / RUN
    listed = re.findall(r"^    (\S.*?)(?:   |$)", peer_folder.__doc__ or "", re.MULTILINE)
    names = [name for line in listed for name in line.split()]
    assert "lock" in names and "states/" in names
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).mkdir() if name.endswith("/") else (run / name).touch()
    items = look(tmp_path, everything=False)
    assert [item.path for item in items] == [run] and others(tmp_path, items) == []
