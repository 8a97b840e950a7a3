"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lab import REPOSITORY
from lab.warm_start import WarmStart

# No test asserts a time: a busy machine is no failure.
settings.register_profile("potluck", deadline=None)
settings.load_profile("potluck")

SHAKESPEARE = REPOSITORY / "examples" / "shakespeare"


@pytest.fixture(scope="session")
def starter() -> Iterator[WarmStart]:
    """Starts `potluck` processes that share what they import; one for all communities of a test session."""
    with WarmStart() as started:
        yield started


@pytest.fixture(scope="session")
def glass_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The glassllm English model as a transformers folder."""
    from peer.training.glassllm import write_folder

    return write_folder(tmp_path_factory.mktemp("glass"))


@pytest.fixture(scope="session")
def shakespeare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All plays as one text file, 5 MB: as the demo has it."""
    spec = importlib.util.spec_from_file_location("shakespeare_prepare", SHAKESPEARE / "prepare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("shakespeare") / "shakespeare.txt"
    path.write_text(module.plain_text())
    return path


@pytest.fixture(scope="session")
def plays(shakespeare: Path) -> Path:
    """The first 200 kB of the plays: enough for a short training."""
    path = shakespeare.with_name("plays.txt")
    path.write_text(shakespeare.read_text()[:200_000])
    return path
