"""`potluck` as a user starts it, and how it says no."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lab.warm_start import WarmStart
from protocol.invite import Invite


def potluck(
    home: Path, *arguments: str | Path, timeout_s: float = 120, starter: WarmStart | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `potluck` to its end, with `home` as this user's own folder; a starter spares it the imports."""
    environment = os.environ | {"POTLUCK_HOME": str(home), "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}
    words = [str(item) for item in arguments]
    if starter is not None:
        return starter.run(words, environment=environment, folder=home, timeout_s=timeout_s)
    return subprocess.run(
        [sys.executable, "-m", "potluck", *words],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=home,
    )


def check_refused(done: subprocess.CompletedProcess[str], code: int, error: str, hint: str) -> None:
    """At the end one line that says what is wrong and one that says what to do; nothing on standard output."""
    lines = done.stderr.strip().splitlines()[-2:]
    assert done.returncode == code, done.stderr
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], done.stderr
    assert error in lines[0] and hint in lines[1]
    assert not done.stdout


def an_invite(address: str, **values: str) -> Invite:
    return Invite.model_validate({"addresses": [address], "run": "a" * 64, "tls": "b" * 64, "root": "c" * 64} | values)
