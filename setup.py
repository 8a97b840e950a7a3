"""What pyproject.toml cannot say: a build writes down the commit that it was made of (protocol/release.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from protocol.release import STAMP, commit_of  # noqa: E402


def stamp(folder: Path) -> None:
    """Write the commit beside the module that reads it; without a checkout, what is there stays."""
    commit = commit_of(HERE)
    if commit:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STAMP).unlink(missing_ok=True)  # it may be a hard link to what it was copied from
        (folder / STAMP).write_text(commit + "\n")


class BuildWithCommit(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            stamp(Path(self.build_lib) / "protocol")


class SdistWithCommit(sdist):
    def make_release_tree(self, base_dir: str, files: Any) -> None:
        super().make_release_tree(base_dir, files)
        stamp(Path(base_dir) / "protocol")


setup(cmdclass={"build_py": BuildWithCommit, "sdist": SdistWithCommit})
