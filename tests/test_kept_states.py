"""What a peer keeps of the newest states: little is written a round, and whatever happens to the files, it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from peer.disk.kept_states import AVERAGE, MOST_REPLAYED, WHOLE, KeptStates
from peer.disk.peer_folder import PeerFolder
from peer.sync.averages import Average
from peer.sync.shelf import Head
from peer.training.aggregate import Mean
from peer.training.codecs.codec import CHUNK_VALUES, chunk_sizes, codec
from peer.training.reduce import average_chunk
from peer.training.state import SharedState
from protocol.errors import InputError
from protocol.succession import Last
from tests.kit.coordinator import Member, Swarm
from tests.swarm_kit import World

VALUES = 300_000


class Run:
    """Rounds of one member, as its disk sees them."""

    def __init__(self, folder: Path, fragments: int = 6, wire: str = "int2") -> None:
        self.world = World(folder, values=VALUES, wire=wire, fragments=fragments)
        member = Member(self.world.identity(0), self.world.certificate(0))
        self.swarm = Swarm(self.world.card.spec, [member], self.world.genesis)
        self.folder = PeerFolder(folder / "home", self.world.card.run)
        self.states = self.opened()
        self.head = self.states.resume()
        self.all = [self.world.genesis.digest]

    def opened(self) -> KeptStates:
        """As after a start."""
        return KeptStates(self.folder, self.world.card, lambda: self.world.genesis)

    def next(self, base: Head, seed: int = 0) -> tuple[Head, Average]:
        """A round on top of a head, and its average."""
        spec, name = self.world.spec, self.world.spec.sync.wire
        draw = torch.Generator().manual_seed(1000 * base.round + seed)
        values = torch.randn(spec.sync.fragment_values(base.round + 1, VALUES), generator=draw)
        coder, sizes = codec(name), chunk_sizes(len(values), CHUNK_VALUES)
        sent = [coder.encode(part) for part in values.split(CHUNK_VALUES)]
        chunks = tuple(average_chunk(name, Mean(), [part], [1], size) for part, size in zip(sent, sizes, strict=True))
        average = Average(name, len(values), chunks)
        state = average.applied_to(spec, base.state)
        self.swarm.state, self.swarm.last = base.state, Last(base.round, base.digest, base.weights)
        return Head(state, self.swarm.agree(state.digest, self.swarm.members)), average

    def keep(self, count: int) -> None:
        for _ in range(count):
            self.head, average = self.next(self.head)
            self.states.keep(self.head, average)
            self.all.append(self.head.digest)

    @property
    def path(self) -> Path:
        return self.folder.path / "states"

    def files(self, suffix: str) -> list[int]:
        return sorted(int(path.stem.partition("-")[2]) for path in self.path.glob(f"*{suffix}"))


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    with contextlib.closing(run.folder):
        yield run


def test_the_newest_state_comes_back_whenever_a_peer_is_killed(one: Run) -> None:
    for _ in range(MOST_REPLAYED + 3):
        one.keep(1)
        back = one.opened().resume()
        assert back.digest == one.head.digest
        assert back.agreement is not None and back.agreement.to_bytes() == one.head.agreement.to_bytes()  # type: ignore[union-attr]


def test_a_round_writes_its_average_and_now_and_then_a_state(one: Run) -> None:
    written = 0
    for _ in range(2 * MOST_REPLAYED + 10):
        one.keep(1)
        written += sum((one.path / f"round-{one.head.round:06d}{suffix}").stat().st_size for suffix in one_of(one))
    assert written < 0.1 * one.head.round * 4 * VALUES
    assert len(one.files(WHOLE)) <= 3 and len(one.files(".json")) <= 2 * MOST_REPLAYED + 20, "old ones are gone"


def one_of(run: Run) -> list[str]:
    found = [suffix for suffix in (WHOLE, AVERAGE) if run.head.round in run.files(suffix)]
    assert len(found) == 1
    return found


@pytest.mark.parametrize("wire", ["fp32", "int8"])
def test_averages_as_large_as_a_state_are_not_kept_instead_of_it(tmp_path: Path, wire: str) -> None:
    run = Run(tmp_path, fragments=1, wire=wire)
    with contextlib.closing(run.folder):
        for _ in range(8):
            run.keep(1)
            assert run.opened().resume().digest == run.head.digest
        assert run.files(WHOLE)


def test_the_coordinator_is_offered_what_it_may_ask_for(one: Run) -> None:
    one.keep(25)
    offered = one.opened().offered()
    assert offered == {one.all[round]: round for round in (10, 20, 24, 25)}
    for digest, round in offered.items():
        state = one.opened().load(digest)
        assert (state.round, state.digest) == (round, digest)
    with pytest.raises(InputError, match="not kept"):
        one.states.load("f" * 64)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def huge(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + bytes(100))


@pytest.mark.parametrize("damage", [flip, cut, huge, Path.unlink])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("round-000040.average", 39),
        ("round-000040.json", 39),
        ("round-000037.average", 36),
        ("round-000033.safetensors", 32),
    ],
)
def test_a_damaged_file_costs_the_rounds_after_it(
    one: Run, damage: Callable[[Path], None], name: str, expected: int
) -> None:
    one.keep(40)
    assert one.files(WHOLE) == [33], "so that the names above say what they should"
    damage(one.path / name)
    states = one.opened()
    back = states.resume()
    assert back.digest == one.all[expected]
    if damage is not Path.unlink:
        assert (one.folder.path / "damaged" / name).exists()
    one.states, one.head = states, back
    one.keep(3)
    assert one.opened().resume().digest == one.head.digest, "it goes on from there"


def test_of_two_branches_the_one_that_is_stood_on_is_kept(one: Run) -> None:
    one.keep(5)
    lighter = list(one.all)
    genesis = Head(one.world.genesis)
    first, _ = one.next(genesis, seed=7)
    other, average = one.next(first, seed=7)  # fetched: this member has not kept the state before it
    one.states.keep(other, average)
    assert other.digest not in lighter and one.files(".json") == [1, 2]
    assert one.opened().resume().digest == other.digest
    one.head = other
    one.keep(2)
    assert one.opened().resume().digest == one.head.digest


def test_what_was_not_written_is_made_up_for_by_a_whole_state(one: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    one.keep(2)
    head, average = one.next(one.head)

    def full(self: Average, path: Path) -> None:
        raise InputError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Average, "save", full)
        with pytest.raises(InputError):
            one.states.keep(head, average)
    assert one.opened().resume().digest == one.head.digest
    one.head = head
    one.keep(1)
    assert one.files(WHOLE) == [4] and one.opened().resume().digest == one.head.digest


@pytest.mark.parametrize("name", ["round-000004.average", "round-000004.safetensors", "round-000004.average.new"])
def test_a_kill_between_two_files_leaves_the_round_before(one: Run, name: str) -> None:
    one.keep(3)
    (one.path / name).write_bytes(bytes(100))
    assert one.opened().resume().digest == one.head.digest
    assert not (one.path / name).exists()


def test_unchanged_chunks_are_not_hashed_again_and_a_wrong_known_one_shows() -> None:
    values = 1_000_000
    base = SharedState(0, (("w", (values,)),), torch.linspace(-1, 1, values), (torch.zeros(values),))
    changed = slice(300_000, 500_000)
    parameters = base.parameters.clone()
    parameters[changed] += 1.0
    known = base.leaves_outside(changed, 1)
    assert sorted(known) == [0, 2, 3, 4, 6, 7], "one MiB is 262,144 values"
    after = SharedState(1, base.names_shapes, parameters, base.outer, 0, known)
    afresh = SharedState(1, base.names_shapes, parameters.clone(), base.outer)
    assert after.digest == afresh.digest
    assert [(part.start, part.stop) for part in after.differs_from(base)] == [(262144, 524288)]
    assert base.leaves_outside(slice(0, values), 1) == base.leaves_outside(changed, 0) == {}
    wrong = SharedState(1, base.names_shapes, parameters, base.outer, 0, known | {0: bytes(32)})
    assert wrong.digest != after.digest
