"""Potluck installs as a tool, by pip, pipx and uv, from a wheel and from a git address: `scripts/try-install`."""

from __future__ import annotations

import subprocess

import pytest

from lab import REPOSITORY


@pytest.mark.slow  # a network, and some minutes
@pytest.mark.parametrize("tool", ["pip", "pipx", "uv"])
def test_what_is_installed_works_and_says_which_commit_it_is(tool: str) -> None:
    command = [REPOSITORY / "scripts" / "try-install", tool]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok\n") == 2
