"""Which Potluck runs, how it came here, and what to type to change that: never the name of a package index."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from pathlib import Path

import pytest

from commands.talk import log_to_stderr
from lab import REPOSITORY
from peer.screen.json_lines import JsonScreen
from peer.screen.starting import starting
from potluck import main
from protocol.errors import PartFailed
from protocol.installed import Installed, how_installed, this_installation
from protocol.release import Release, commit_of, this_release
from tests.kit.command_line import check_refused, potluck
from tests.test_structure import PRODUCT, sources

_FROM_AN_INDEX = r"""\binstall (-\S+ )*['"]*potluck\b(?!(\[\w+\])? @)"""
GIT = "git+https://example.org/potluck"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_the_commit_of_a_checkout_is_what_git_says_however_it_is_kept(tmp_path: Path) -> None:
    checkout, worktree = tmp_path / "checkout", tmp_path / "worktree"
    checkout.mkdir()
    assert commit_of(checkout) == ""
    git(checkout, "init", "--quiet", "--initial-branch", "wood/fire")
    assert commit_of(checkout) == "", "it has no commit yet"
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "a")
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == head
    git(checkout, "worktree", "add", "--quiet", str(worktree))
    assert commit_of(worktree) == head
    git(checkout, "pack-refs", "--all")
    assert (commit_of(checkout), commit_of(worktree)) == (head, head)
    git(worktree, "commit", "--quiet", "--allow-empty", "-m", "b")
    newer = git(worktree, "rev-parse", "HEAD")
    assert (commit_of(checkout), commit_of(worktree)) == (head, newer)
    git(checkout, "checkout", "--quiet", "--detach", newer)
    assert commit_of(checkout) == newer


@pytest.mark.parametrize("head", ["", "ref: refs/heads/none", "ref: HEAD", "ref: ../../x", "z" * 40, "\x00\xff"])
def test_a_damaged_checkout_has_no_commit(head: str, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert commit_of(tmp_path) == ""


def test_version_and_commit_are_told_by_version_and_at_the_head_of_a_log(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = potluck(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"{this_release()}\n")
    assert this_release().commit[:12] in done.stdout or not (REPOSITORY / ".git").exists()
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    starting(quiet=False)
    assert str(this_release()) in capsys.readouterr().err
    caplog.set_level(logging.INFO)
    log_to_stderr(verbose=True)
    assert str(this_release()) in caplog.text
    JsonScreen().started(this_release())
    assert json.loads(capsys.readouterr().out)["commit"] == this_release().commit


def test_what_nobody_foresaw_ends_as_a_failure_and_names_the_version(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: object) -> int:
        raise LookupError("planted")

    monkeypatch.setattr("peer.screen.usage.run", fail)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == PartFailed.exit_code and f"{this_release()} has failed" in caplog.text


# ---- how it was installed --------------------------------------------------------------------------------------------


def installed(folder: Path, tool: str, **direct_url: object) -> Installed:
    """What is found of an installation whose installer has left these notes."""
    prefix, site = folder / "env", folder / "env" / "lib"
    site.mkdir(parents=True)
    receipts = {"uv tool": "uv-receipt.toml", "pipx": "pipx_metadata.json"}
    if tool in receipts:
        (prefix / receipts[tool]).touch()
    return how_installed(site, prefix, site, json.dumps(direct_url) if direct_url else "")


def test_an_extra_is_added_from_where_the_rest_came(tmp_path: Path) -> None:
    wheel = tmp_path / "my wheels" / "potluck-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    vcs = {"url": "https://example.org/potluck", "vcs_info": {"vcs": "git", "commit_id": "1" * 40}}
    cases = {
        "pipx": (vcs, f"pipx install --force 'potluck[peer] @ {GIT}'"),
        "uv tool": (vcs, f"uv tool install --force 'potluck[peer] @ {GIT}'"),
        "pip": (vcs, f"-m pip install 'potluck[peer] @ {GIT}'"),
    }
    for tool, (notes, command) in cases.items():
        assert installed(tmp_path / tool, tool, **notes).add("peer").endswith(command)
    at_tag = {"url": vcs["url"], "vcs_info": {"vcs": "git", "commit_id": "1" * 40, "requested_revision": "v1"}}
    assert installed(tmp_path / "tag", "pipx", **at_tag).source == f"{GIT}@v1"
    of_wheel = installed(tmp_path / "wheel", "pip", url=wheel.as_uri(), archive_info={})
    assert of_wheel.add("peer").endswith(f"-m pip install 'potluck[peer] @ {wheel.as_uri()}'")
    wheel.unlink()
    gone = installed(tmp_path / "gone", "pip", url=wheel.as_uri(), archive_info={})
    assert gone.add("peer").startswith("install it again from where you got it")


@pytest.mark.parametrize("notes", ["", "{", "[]", '{"url": 1, "vcs_info": 2}', '{"vcs_info": {}}'])
def test_of_an_installation_without_good_notes_the_source_is_not_known(notes: str, tmp_path: Path) -> None:
    found = how_installed(tmp_path, tmp_path, tmp_path, notes)
    assert "potluck @" not in found.add("peer") and "from a checkout of the project" in found.add("peer")
    assert "as you installed this one" in found.upgrade("peer")


def test_a_checkout_is_known_whatever_else_is_installed(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    found = how_installed(tmp_path, tmp_path, tmp_path / "site-packages", '{"url": "https://example.org/x.whl"}')
    assert found.add("data").endswith(f"-m pip install -e '{tmp_path}[data]'")
    assert found.upgrade("data").startswith(f"type: git -C {tmp_path} pull && ")


def test_an_upgrade_of_one_version_is_not_taken_for_done() -> None:
    """pip keeps what it has when the version is the same, wherever it came from."""
    typed = Installed("pip", GIT).upgrade("peer")
    assert re.search(r"pip uninstall -y potluck && .*pip install 'potluck\[peer\] @ git", typed)
    assert Installed("pipx", GIT).upgrade("peer") == "type: pipx reinstall potluck"
    assert "uv tool upgrade" in Installed("uv tool", GIT).upgrade("peer")


def test_a_missing_extra_is_told_with_what_works_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{hidden}:{REPOSITORY}")
    done = potluck(tmp_path, "host", "run.toml")
    check_refused(done, 2, "this needs torch", this_installation().add("coordinator"))


def test_nothing_that_is_said_names_a_package_of_an_index() -> None:
    """Whoever registers that name would be installed. What old invites say is part of their bytes."""
    said = [name for name, source in sources(PRODUCT) if re.search(_FROM_AN_INDEX, source)]
    assert said == ["protocol/invite.py"]


def test_a_release_without_a_commit_says_so() -> None:
    assert str(Release("0.1.0", "")) == "potluck 0.1.0, commit unknown"
