"""One all-reduce over home lines, against what the lines allow.

In the WAN lab: peers on lines of 20/100 and 10/50 Mbit/s average one update, with the real streams, proofs and checks,
and no training. The physical limit is 2 (n - 1) / n times the update's bytes on each uplink. With trusted reducers on
fast lines (`potluck join --reduce-only`) a home sends its update once, and the limit is half of that or more.

    scripts/bench allreduce --mb 100 --peers 4,8 --reducers 0,2

Goal: at least 0.85 of the limit's speed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab import REPOSITORY
from lab.wan.lab import Host, WanLab, available

if TYPE_CHECKING:
    from peer.round.group import Group
    from tests.swarm_kit import World

GOAL = 0.85
LINKS = {  # delay_ms is a quarter of the round trip: 40 and 80 ms
    "20/100": Host(delay_ms=10, up_mbit=20, down_mbit=100),
    "10/50": Host(delay_ms=20, up_mbit=10, down_mbit=50, loss=0.005),
}
FAST = Host(delay_ms=5, up_mbit=1000, down_mbit=1000)
READY_S, FIRST_S, SILENCE_S, PORT = 300.0, 600.0, 60.0, 4710


@dataclass(frozen=True)
class Row:
    """One all-reduce, as its slowest peer saw it."""

    link: str
    peers: int
    reducers: int
    update_mb: float
    limit_s: float
    took_s: float
    sent_mb: float  # by a home, on its interface, mean
    late_ms: float  # by which the lab's forwarder was late, mean

    @property
    def ratio(self) -> float:
        return self.limit_s / self.took_s

    def row(self) -> str:
        return (
            f"{self.link:8} {self.peers:6d} {self.reducers:9d} {self.update_mb:11.1f} {self.limit_s:9.1f} "
            f"{self.took_s:8.1f} {self.ratio:7.2f} {self.sent_mb:14.1f} {self.late_ms:9.1f}"
        )


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--as-peer"]:
        return as_peer(json.loads(arguments[1]))
    parser = argparse.ArgumentParser(prog="scripts/bench allreduce", description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=float, default=100.0, help="of the update as it travels")
    parser.add_argument("--wire", default="fp32")
    parser.add_argument("--peers", type=_numbers, default=[4, 8])
    parser.add_argument(
        "--reducers", type=_numbers, default=[0, 2], help="trusted ones, on fast lines, beside the peers"
    )
    parser.add_argument("--links", type=lambda text: text.split(","), default=list(LINKS))
    parser.add_argument(
        "--congestion", help="TCP's congestion control on all lines, for instance bbr; default: the lab's"
    )
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args(arguments)
    if reason := available():
        sys.stderr.write(f"error: there is no WAN lab here: {reason}\nhint: run it as root on Linux\n")
        return 2
    rows = []
    for link in options.links:
        for peers in options.peers:
            for reducers in options.reducers:
                sys.stderr.write(f"{link} Mbit/s, {peers} peers, {reducers} trusted reducers …\n")
                rows.append(measure(link, peers, reducers, options))
    print(f"\nan update of {options.mb:g} MB, {options.wire}, {time.strftime('%Y-%m-%d')}")
    print(
        f"{'Mbit/s':8} {'peers':>6} {'reducers':>9} {'update, MB':>11} {'limit, s':>9} {'took, s':>8} {'ratio':>7} "
        f"{'a home sent, MB':>14} {'lab late, ms':>9}"
    )
    for row in rows:
        print(row.row())
    worst = min(row.ratio for row in rows)
    print(f"lowest ratio: {worst:.2f}; goal: {GOAL}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=2) + "\n")
    return 0


def _numbers(text: str) -> list[int]:
    return [int(item) for item in text.split(",")]


def measure(link: str, peers: int, reducers: int, options: argparse.Namespace) -> Row:
    """Let `peers` homes average once."""
    names = [f"p{index}" for index in range(peers + reducers)]
    lines = {name: LINKS[link] if index < peers else FAST for index, name in enumerate(names)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab = stack.enter_context(WanLab(lines, congestion=options.congestion))
        processes: list[subprocess.Popen[bytes]] = []
        for index, name in enumerate(names):
            job = {
                "folder": str(folder), "index": index, "peers": peers, "reducers": reducers, "wire": options.wire,
                "mb": options.mb, "addresses": [lab.address(other) for other in names],
            }  # fmt: skip
            command = [sys.executable, "-m", "scripts.tables.allreduce", "--as-peer", json.dumps(job)]
            process = lab.run(name, command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
            stack.callback(process.kill)
            processes.append(process)
        _wait(folder, "connected", len(names), READY_S, processes)
        before = lab.counters()
        lab.strain()
        (folder / "go").touch()
        told = _wait(folder, "done", len(names), 60 + 40 * options.mb, processes)
        after, late = lab.counters(), lab.strain()
    assert len({item["digest"] for item in told}) == 1, "the members hold different averages"
    homes = names[:peers]
    times = 1.0 if reducers else 2 * (peers - 1) / peers
    update_bytes = told[0]["update_bytes"]
    return Row(
        link,
        peers,
        reducers,
        update_bytes / 1e6,
        times * update_bytes * 8e-6 / float(LINKS[link].up_mbit or 0),
        max(item["seconds"] for item in told if item["index"] < peers),
        statistics.mean(after[name].bytes_up - before[name].bytes_up for name in homes) / 1e6,
        late.mean_late_ms,
    )


def _wait(
    folder: Path, what: str, count: int, timeout_s: float, processes: Sequence[subprocess.Popen[bytes]] = ()
) -> list[dict[str, Any]]:
    deadline = time.monotonic() + timeout_s
    while len(found := sorted(folder.glob(f"{what}-*.json"))) < count:
        if any(process.poll() for process in processes):
            raise AssertionError("a peer has failed: see above")
        if time.monotonic() > deadline:
            raise AssertionError(f"only {len(found)} of {count} peers were {what} within {timeout_s:.0f} s")
        time.sleep(0.1)
    return [json.loads(path.read_text()) for path in found]


# ---- one peer, in a namespace of its own -----------------------------------------------------------------------------


def as_peer(job: dict[str, Any]) -> int:
    """Prepare, say so, wait for the others, average once."""
    asyncio.run(_peer(job))
    return 0


class _AllThere:
    """In place of `peer.net.lines`: nobody is away, and nobody is told of what comes."""

    def is_alive(self, peer: str) -> bool:
        return True

    def patience_s(self, peer: str) -> float:
        return SILENCE_S

    def slowness_s(self, peer: str) -> float:
        return 0.0

    def silent_s(self, peer: str) -> float:
        return 0.0

    def heard(self, peer: str) -> None: ...

    def answered(self, peer: str, seconds: float | None) -> None: ...

    def lost(self, peer: str, since: float) -> None: ...


def _group(world: World, others: list[dict[str, Any]], share: int) -> Group:
    """All that are there, those without a claim as reducers; `share`: of the reducing, of each with one."""
    from peer.round.group import Group, Member, Reducer
    from protocol.statements import open_claim

    members, helpers = [], []
    for number, other in enumerate(others):
        peer = world.identity(number).peer_id
        if not other["claim"]:
            helpers.append(Reducer(peer, world.certificate(number, reducer=True), 1))
            continue
        claim = open_claim(bytes.fromhex(other["claim"]))
        members.append(Member(peer, claim, world.certificate(number), True, share))
    group = Group(1, world.genesis.digest, 0, members[0].peer, tuple(members), reducers=tuple(helpers))
    return group.weighed(world.terms())


async def _peer(job: dict[str, Any]) -> None:
    import torch

    from coordinator.presets import NEW
    from peer.net.allreduce import STREAM, Reduction
    from peer.net.node import Node
    from peer.net.pace import Pace, Patience
    from peer.net.records import RecordValidator
    from peer.net.roster import Roster
    from peer.net.talk import Talk
    from peer.training.codecs.codec import EncodedUpdate, codec
    from peer.training.robust import aggregator
    from protocol import swarm_pb2
    from tests.swarm_kit import World

    torch.set_num_threads(1)
    folder, index, peers = Path(job["folder"]), job["index"], job["peers"]
    values = int(job["mb"] * 1e6 * 65536 / codec(job["wire"]).encoded_bytes(65536))
    world = World(folder, values=values, wire=job["wire"])
    update = EncodedUpdate.encode(world.update(index), job["wire"]) if index < peers else None
    address = job["addresses"][index]
    node = await Node.start(world.identity_path(index), listen=f"{address}:{PORT}", validator=RecordValidator())
    roster, lines, mine = Roster(world.card.run, world.card.member_key), _AllThere(), world.certificate(index)
    talk = Talk(node, world.card.run, roster, lines, lambda: mine)  # type: ignore[arg-type]
    reductions: asyncio.Future[Reduction] = asyncio.get_running_loop().create_future()

    async def answer(first: swarm_pb2.Part, reader: Any, writer: Any, peer: str) -> None:
        await (await reductions).serve(peer, first, reader, writer)

    await talk.serve(STREAM, swarm_pb2.Part, answer, first_s=FIRST_S)
    claim = world.claim(index, update).sign(world.identity(index)).data.hex() if update else ""
    _say(folder, "ready", index, {"claim": claim, "addresses": await node.addresses()})
    others = await asyncio.to_thread(_wait, folder, "ready", len(job["addresses"]), READY_S)
    for earlier in others[:index]:  # the later ones dial the earlier: two that dial each other at once may both fail
        async with asyncio.timeout(READY_S):
            while not await node.connect(earlier["addresses"]):
                await asyncio.sleep(1)
    group, pace = _group(world, others, share=0 if job["reducers"] else 1), Pace(Patience(SILENCE_S, total_s=3600.0))
    for other in (*group.members, *group.reducers):
        roster.admit(other.peer, other.certificate)
    reduction = Reduction(group, update, talk, pace, aggregator(NEW["sync"]["clip"]))
    reductions.set_result(reduction)
    _say(folder, "connected", index, {})
    while not (folder / "go").exists():
        await asyncio.sleep(0.02)
    averaged = await reduction.run()
    size = sum(map(len, update.chunks)) if update else 0
    digest = hashlib.sha256(averaged.numpy().tobytes()).hexdigest()
    _say(folder, "done", index, {"index": index, "seconds": reduction.seconds, "digest": digest, "update_bytes": size})
    await asyncio.to_thread(_wait, folder, "done", len(job["addresses"]), 3600.0)
    await talk.close()
    await node.close()


def _say(folder: Path, what: str, index: int, value: dict[str, Any]) -> None:
    partial = folder / f"{what}-{index:02d}.partial"
    partial.write_text(json.dumps(value))
    partial.rename(partial.with_suffix(".json"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
