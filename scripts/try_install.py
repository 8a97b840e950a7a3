"""Installs the last commit by pip, pipx and uv, from a wheel and from a git address, and tries what came of each.

Only the base is installed, which verifies: the extras bring gigabytes. What an installation says to type for an extra
is typed without the extra, so that the command itself is known to work.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VECTORS = ROOT / "tests" / "vectors"
TOOLS, SOURCES = ("pip", "pipx", "uv"), ("wheel", "git")
COMMAND_S = 900.0


class Ran(NamedTuple):
    code: int
    output: str  # both streams


class Way(NamedTuple):
    """One way to install it."""

    tool: str
    source: str
    run: Callable[..., Ran]  # a command in its surroundings
    install: list[str]  # up to what is installed
    potluck: Path
    python: Path  # of its environment


def surroundings(folder: Path, tools: Path) -> Callable[..., Ran]:
    """Runs commands with a home of their own, and without this checkout on Python's path."""
    mine = {
        "HOME": str(folder),
        "PIPX_HOME": str(folder / "pipx"),
        "PIPX_BIN_DIR": str(folder / "bin"),
        "UV_TOOL_DIR": str(folder / "uv"),
        "UV_TOOL_BIN_DIR": str(folder / "bin"),
        "POTLUCK_HOME": str(folder / "home"),
        "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    others = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}

    def run(*command: str | Path) -> Ran:
        done = subprocess.run(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env=others | mine,
            timeout=COMMAND_S,
            check=False,
        )
        return Ran(done.returncode, done.stdout)

    return run


def way(tool: str, source: str, folder: Path, tools: Path) -> Way:
    """Make what a way needs before it begins."""
    folder.mkdir(parents=True)
    run = surroundings(folder, tools)
    if tool == "pip":
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        return Way(
            tool, source, run, [str(python), "-m", "pip", "install", "--quiet"], python.with_name("potluck"), python
        )
    install = {"pipx": ["pipx", "install"], "uv": ["uv", "tool", "install"]}[tool]
    environment = folder / {"pipx": "pipx/venvs/potluck", "uv": "uv/potluck"}[tool]
    return Way(tool, source, run, install, folder / "bin" / "potluck", environment / "bin" / "python")


def tried(way: Way, what: str, commit: str) -> list[str]:
    """Install it and try it; what went wrong, in words."""
    done = way.run(*way.install, what)
    if done.code:
        return [f"{shlex.join([*way.install, what])}: {done.output[-2000:]}"]
    wrong = [*_version(way, commit, "at first"), *_verbs(way)]
    told = way.run(way.potluck, "join", VECTORS / "invite")
    match = re.search(r"^hint: type: (.*)$", told.output, re.MULTILINE)
    if told.code != 2 or match is None or "[peer]" not in match[1]:
        return [*wrong, f"a missing extra is told so: {told.output}"]
    typed = way.run(*shlex.split(match[1].replace("[peer]", "")))
    if typed.code:
        wrong.append(f"{match[1]}: {typed.output[-2000:]}")
    return [*wrong, *_version(way, commit, "after the hint")]


def upgraded(way: Way, commit: str) -> list[str]:
    """Type what it says to type for a newer one; what went wrong, in words."""
    ask = "from protocol.installed import this_installation; print(this_installation().upgrade('peer'))"
    told = way.run(way.python, "-c", ask).output.strip()
    if not told.startswith("type: "):
        return [f"how to upgrade is told so: {told}"]
    for command in told.removeprefix("type: ").replace("[peer]", "").split(" && "):
        typed = way.run(*shlex.split(command))
        if typed.code:
            return [f"{command}: {typed.output[-2000:]}"]
    return _version(way, commit, "after the upgrade")


def _version(way: Way, commit: str, when: str) -> list[str]:
    done = way.run(way.potluck, "--version")
    return [] if done.code == 0 and f"commit {commit[:12]}" in done.output else [f"--version {when}: {done.output}"]


def _verbs(way: Way) -> list[str]:
    """What the base can do, and how it says no."""
    wrong = []
    key = ("--key", VECTORS / "coordinator.pub")
    expected: list[tuple[int, str, tuple[str | Path, ...]]] = [
        (0, "verified", ("verify", VECTORS / "receipt.json", *key)),
        (2, "not an invite", ("join", "hello")),
        (0, " join ", ("service", "install", VECTORS / "invite", "--dry-run")),
        (0, "nothing was removed", ("uninstall", "--dry-run")),
    ]
    for code, said, words in expected:
        done = way.run(way.potluck, *words)
        if done.code != code or said not in done.output:
            wrong.append(f"{shlex.join(map(str, words))}: {done.output}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of {', '.join(TOOLS)} [default: all]")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it there")
    given = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)  # nothing of this checkout
    with tempfile.TemporaryDirectory(prefix="potluck-install-") as temporary:
        folder = (given.keep or Path(temporary)).absolute()
        with served(folder) as address:
            return _all(folder, address, given.tools or list(TOOLS))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder by HTTP, on this machine only: the address that a bare repository in it is to be had from."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _all(folder: Path, address: str, names: list[str]) -> int:
    tools = folder / "tools"
    venv.create(tools, with_pip=True)
    python = tools / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "pipx", "uv"], check=True, timeout=COMMAND_S)
    clone, bare = folder / "clone", folder / "potluck.git"  # what is committed, and nothing else
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True, timeout=COMMAND_S)
    subprocess.run(["git", "clone", "--quiet", "--bare", clone, bare], check=True, timeout=COMMAND_S)
    first = commit = _published(bare)
    build = [str(python), "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", f"{folder}/wheel", str(clone)]
    subprocess.run(build, check=True, timeout=COMMAND_S)
    wheel = next((folder / "wheel").glob("*.whl"))
    places = {"wheel": str(wheel), "git": f"potluck @ git+{address}/potluck.git"}
    failed = 0
    for tool in names:
        for source in SOURCES:
            here = way(tool, source, folder / f"{tool}-{source}", tools)
            wrong = tried(here, places[source], commit if source == "git" else first)
            if source == "git" and not wrong:
                commit = _newer(clone, bare)
                wrong = upgraded(here, commit)
            failed += bool(wrong)
            print(f"{tool:5} from {source:6} {'ok' if not wrong else 'FAILED'}", flush=True)
            for line in wrong:
                print(f"  {line}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _newer(clone: Path, bare: Path) -> str:
    """Publish another commit, of the same version."""
    me = ["-c", "user.name=try-install", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", *me, "commit", "--quiet", "--allow-empty", "-m", "newer"], cwd=clone, check=True)
    subprocess.run(["git", "push", "--quiet", str(bare), "HEAD"], cwd=clone, check=True)
    return _published(bare)


def _published(bare: Path) -> str:
    """Make a bare repository such that it can be fetched from a plain web server; returns its commit."""
    subprocess.run(["git", "update-server-info"], cwd=bare, check=True)
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=bare, capture_output=True, text=True, check=True)
    return asked.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
