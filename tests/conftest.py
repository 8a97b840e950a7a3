"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from lab import small_community
from lab.processes import CARD_TOKENS_PER_S, Community
from lab.warm_start import WarmStart
from protocol import words

if TYPE_CHECKING:
    from lab import poisoned_rounds

# No test asserts a time: a busy machine is no failure.
settings.register_profile("potluck", deadline=None)
settings.load_profile("potluck")


@pytest.fixture(autouse=True)
def no_language_of_another_test() -> Iterator[None]:
    """What a test chose by --lang holds for its process, and so for the next test."""
    yield
    words.choose(None)


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
    path = tmp_path_factory.mktemp("shakespeare") / "shakespeare.txt"
    path.write_text(small_community.shakespeare().plain_text())
    return path


@pytest.fixture(scope="session")
def plays(shakespeare: Path) -> Path:
    """The first 200 kB of the plays: enough for a short training."""
    path = shakespeare.with_name("plays.txt")
    path.write_text(shakespeare.read_text()[:200_000])
    return path


@pytest.fixture(scope="session")
def llama(glass_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few thousand parameters, with the tokenizer of the English one."""
    from lab.training_fixtures import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("llama") / "tiny", glass_dir)


@pytest.fixture(scope="session")
def seven(glass_dir: Path, plays: Path, tmp_path_factory: pytest.TempPathFactory) -> poisoned_rounds.Community:
    """Seven members that train in memory, any of whom may send something else than its update."""
    from lab import poisoned_rounds
    from lab.training_fixtures import Bench

    inner = {"lr": 4e-3, "micro_batch": 4, "batch": 4}
    folder = tmp_path_factory.mktemp("seven")
    bench = Bench(folder, glass_dir, plays, base=glass_dir, inner=inner, data={"held_out_sequences": 32})
    return poisoned_rounds.Community(bench, [2] * 7)


@pytest.fixture
def community(tmp_path: Path, llama: Path, plays: Path, starter: WarmStart) -> Iterator[Callable[..., Community]]:
    """Opens communities of a tiny model; kills whatever is left of them."""
    from tests.kit.whole_runs import small_run

    with ExitStack() as stack:

        def open_one(*, fixed_ports: bool = False, **sections: Any) -> Community:
            config = small_run(llama, plays, sections)
            return stack.enter_context(
                Community(tmp_path, config, starter=starter, fixed_ports=fixed_ports, tokens_per_s=CARD_TOKENS_PER_S)
            )

        yield open_one
