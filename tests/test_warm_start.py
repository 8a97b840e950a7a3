"""What the tests have started does not outlive them, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lab import REPOSITORY
from lab.processes import eventually

KILLED_TEST = """
import os, signal, sys, time
from pathlib import Path
from lab.processes import LabProcess
from lab.warm_start import WarmStart
folder = Path(sys.argv[1])
starter = WarmStart()
invite = sys.argv[2]
part = LabProcess("join", ["join", invite, "--yes", "--json"], folder / "join.log", dict(os.environ), starter)
part.wait_for("waiting")
print(part.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_when_the_tests_are_killed_what_they_have_started_ends_too(tmp_path: Path) -> None:
    from protocol.invite import Invite

    invite = Invite(addresses=("127.0.0.1:1",), run="a" * 64, tls="b" * 64, root="c" * 64)
    environment = os.environ | {"POTLUCK_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_TEST, str(tmp_path), str(invite)],
        env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    started = int(done.stdout)
    eventually(lambda: not Path(f"/proc/{started}").exists(), timeout_s=30)
