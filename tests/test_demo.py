"""The demo, interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import REPOSITORY
from lab.processes import GONE_S, MARK, WAIT_S, eventually, marked

pytestmark = pytest.mark.swarm


def test_ctrl_c_in_the_middle_of_the_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    mark = f"{tmp_path}:demo;"
    with (tmp_path / "demo.log").open("w") as log:
        demo = subprocess.Popen(
            [sys.executable, "-m", "scripts.demo", "--out", str(tmp_path / "out")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {MARK: mark},
            cwd=REPOSITORY,
            start_new_session=True,
        )
    try:
        told = re.compile(r"round [1-9]")
        eventually(lambda: told.search((tmp_path / "demo.log").read_text()) or demo.poll() is not None)
        assert demo.poll() is None, (tmp_path / "demo.log").read_text()
        assert len(marked(mark)) > 5, "a coordinator, three peers, and what they started"
        demo.send_signal(signal.SIGINT)
        assert demo.wait(WAIT_S) == 130
        eventually(lambda: not marked(mark), GONE_S)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
        demo.wait(GONE_S)
