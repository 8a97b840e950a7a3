"""States on their way to the publisher: one member is asked at a time, and no wrong byte is kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from coordinator.uploads import ASK_AGAIN_S, ASK_NEWCOMERS_S, OUTER, PARAMETERS, StateInbox, Wanted
from peer.training.state import SharedState
from protocol.errors import FormatError, NetworkError, VerificationError

COUNT = 600_000  # values: two and a bit chunks


@pytest.fixture(scope="module")
def state() -> SharedState:
    torch.manual_seed(0)
    shapes = (("a", (100_000,)), ("b", (500_000,)))
    return SharedState(3, shapes, torch.randn(COUNT), (torch.randn(COUNT), torch.randn(COUNT)), 3)


@pytest.fixture
def inbox(tmp_path: Path, state: SharedState) -> StateInbox:
    genesis = SharedState(0, state.names_shapes, torch.zeros(COUNT))
    return StateInbox(tmp_path / "incoming", genesis.manifest())


def chunks(state: SharedState) -> list[bytes]:
    return [state.chunk(index) for index in range(state.chunk_count)]


def test_state_arrives_whole_however_it_is_cut(inbox: StateInbox, state: SharedState) -> None:
    whole = b"".join(chunks(state))
    for size in (1 << 20, 999_999, 4096):
        folder = inbox.receive(state.manifest(), (whole[i : i + size] for i in range(0, len(whole), size)))
        assert inbox.has(state.digest)
        assert (folder / PARAMETERS).read_bytes() + (folder / OUTER).read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda whole: whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], VerificationError),
        (lambda whole: whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:], VerificationError),
        (lambda whole: whole[:-1], FormatError),
        (lambda whole: whole + b"x", FormatError),
        (lambda whole: b"", FormatError),
        (lambda whole: whole[4 * COUNT :] + whole[: 4 * COUNT], VerificationError),
    ],
    ids=["flipped parameter", "flipped outer", "short", "long", "empty", "swapped"],
)
def test_wrong_bytes_are_refused_and_not_kept(
    inbox: StateInbox, state: SharedState, change: Callable[[bytes], bytes], error: type[Exception], tmp_path: Path
) -> None:
    data = change(b"".join(chunks(state)))
    with pytest.raises(error):
        inbox.receive(state.manifest(), [data] if data else [])
    assert not inbox.has(state.digest) and not list((tmp_path / "incoming").iterdir())


def test_full_disk_of_the_host_is_no_fault_of_the_member(
    inbox: StateInbox, state: SharedState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NetworkError, match="cannot keep the state now"):
        inbox.receive(state.manifest(), chunks(state))
    assert not inbox.has(state.digest) and not list((tmp_path / "incoming").iterdir())


def test_manifest_must_be_the_agreed_states(inbox: StateInbox, state: SharedState) -> None:
    assert inbox.check_manifest(state.manifest().to_bytes(), state.digest, 3) == state.manifest()
    with pytest.raises(VerificationError, match="expected the manifest"):
        inbox.check_manifest(state.manifest().to_bytes(), "0" * 64, 3)
    with pytest.raises(VerificationError, match="another round"):
        inbox.check_manifest(state.manifest().to_bytes(), state.digest, 4)
    huge = state.manifest().model_copy(update={"tensors": (("a", (2**40,)),)})
    with pytest.raises(VerificationError, match="run's tensors"):
        inbox.check_manifest(huge.to_bytes(), huge.digest, 3)
    with pytest.raises(FormatError):
        inbox.check_manifest(b"[]", state.digest, 3)


def test_one_member_is_asked_at_a_time_and_the_next_when_it_is_silent() -> None:
    wanted = Wanted()
    wanted.want(["x"])
    assert wanted.ask("first", [], 0.0) == "", "it has no such state"
    assert wanted.ask("first", ["x"], 0.0) == "x"
    assert wanted.ask("second", ["x"], 1.0) == ""
    assert wanted.ask("first", ["x"], 1.0) == "x", "the answer may have been lost"
    assert not wanted.begin("second", "x")
    assert wanted.ask("second", ["x"], ASK_AGAIN_S + 1) == "x"
    assert not wanted.begin("first", "x") and wanted.begin("second", "x")
    assert wanted.ask("first", ["x"], ASK_AGAIN_S + 2) == "", "it is on its way"
    assert not wanted.begin("second", "x"), "once"


def test_member_that_failed_is_not_asked_before_the_others() -> None:
    wanted = Wanted()
    wanted.want(["x"])
    assert wanted.ask("first", ["x"], 0.0) == "x" and wanted.begin("first", "x")
    wanted.end("first", "x", delivered=False)
    assert wanted.ask("first", ["x"], 1.0) == ""
    assert wanted.ask("second", ["x"], 2.0) == "x" and wanted.begin("second", "x")
    wanted.end("second", "x", delivered=True)
    assert wanted.ask("first", ["x"], 3.0) == "", "it has come"


def test_only_member_is_asked_again_after_it_failed() -> None:
    wanted = Wanted()
    wanted.want(["x"])
    assert wanted.ask("only", ["x"], 0.0) == "x" and wanted.begin("only", "x")
    wanted.end("only", "x", delivered=False)
    assert "x" in [wanted.ask("only", ["x"], float(now)) for now in range(1, 4)]


def test_identities_without_credit_are_asked_when_nobody_else_delivers() -> None:
    wanted = Wanted()
    wanted.want(["x"])
    assert wanted.ask("stranger", ["x"], 0.0, worked=False) == ""
    assert wanted.ask("member", ["x"], 1.0) == "x"
    wanted.begin("member", "x")
    wanted.end("member", "x", delivered=False)
    assert wanted.ask("stranger", ["x"], ASK_NEWCOMERS_S - 1, worked=False) == ""
    assert wanted.ask("stranger", ["x"], ASK_NEWCOMERS_S, worked=False) == "x"


def test_best_state_that_a_member_has_is_asked_for() -> None:
    wanted = Wanted()
    wanted.want(["due", "newer"])
    assert wanted.ask("first", ["newer", "due"], 0.0) == "due"
    wanted.want(["newer"])
    assert wanted.ask("second", ["newer"], 1.0) == "newer"
