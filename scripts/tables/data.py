"""Prepared data as members have them: what is fetched when, caches that are full, restarts, sources that fail.

    scripts/bench data                                  0.2 GB of records, made and prepared first: ten minutes
    scripts/bench data --size 2 --prepared FOLDER       2 GB; FOLDER keeps what was prepared, for the next time

A host and three members, real processes with a cache of 100 MB each, in rounds of two seconds. The shards lie at a
mirror on this machine that gives each connection 50 Mbit/s, and at the host. A tiny model, held to some tokens a
second: the data are what is measured. The records are those of `scripts/bench prepare`.

Not counted: Python's imports (the processes are forked from one that has them), about 5 s on a fresh machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from lab import REPOSITORY
from lab.mirror import Mirror
from lab.outcomes import divergences
from lab.prepared_members import FILLER, Fetched, Member, Members, fill, small_disk
from lab.processes import Community, eventually
from lab.small_community import real_inputs, run_config, tiny_inputs
from lab.warm_start import WarmStart
from scripts.tables.prepare import records

NAMES = ("alice", "bob", "carol")
SOURCES = 2
LENGTH = 64  # tokens in a sequence
TOKENS_PER_S = 2000.0  # of each member: a lot of 64 sequences in two seconds
WAIT_S = 600.0
OVER = 1.3  # times its cache a member fetches in the first scene
ROUNDS_AFTER = 3  # that are looked at after a fault
COORDINATOR = "the coordinator"  # as the log names it
MOST_GROWN = 200e6  # bytes of memory from the first step to the end: eight shards of 8 MiB and their masks are 100 MB
DISK_BYTES = 128 << 20  # of the member with a small one


@dataclass
class Scene:
    """One row: what was done, what was seen, and what must hold but does not."""

    name: str
    seen: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def must(self, holds: object, claim: str) -> None:
        if not holds:
            self.missed.append(claim)

    def row(self) -> str:
        verdict = f"**missed: {'; '.join(self.missed)}**" if self.missed else "pass"
        return f"| {self.name} | {'; '.join(self.seen)} | {verdict} |"

    def tell(self, line: str) -> None:
        self.seen.append(line)
        print(f"  {line}", flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench data", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=0.2, help="GB of records")
    parser.add_argument("--prepared", type=Path, help="a folder where they are prepared, or will be")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that prepare")
    parser.add_argument("--cache", type=float, default=0.1, help="GB, of each member")
    parser.add_argument("--mbit", type=float, default=50.0, help="of each connection to the mirror")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as spare:
        prepared = (options.prepared or Path(spare)).resolve()
        config = prepare(prepared, options.size, options.processes)
        with tempfile.TemporaryDirectory(dir=prepared) as folder:
            scenes = play(Path(folder), prepared, config, options)
    print(f"\n{options.size:g} GB, caches of {1000 * options.cache:g} MB, {options.mbit:g} Mbit/s, ", end="")
    print(f"{time.strftime('%Y-%m-%d')}\n\n| scene | seen | |\n|---|---|---|")
    for scene in scenes:
        print(scene.row())
    if options.json:
        options.json.write_text(json.dumps([asdict(scene) for scene in scenes], indent=1))
    return 1 if any(scene.missed for scene in scenes) else 0


# ---- the data --------------------------------------------------------------------------------------------------------


def prepare(folder: Path, size_gb: float, processes: int) -> dict[str, Any]:
    """Make the records and prepare them, unless that was done; returns the run.toml that they are prepared for."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = tiny_inputs(folder / "inputs")
    paths = [folder / f"plays-{number}.jsonl" for number in range(1, SOURCES + 1)]
    config = run_config(
        inputs,
        run={"name": "data", "seed": 7},
        sync={"round_seconds": 2.0, "min_peers": 2},
    ) | {
        "data": [
            {"name": path.stem, "kind": "jsonl", "path": str(path), "license": "CC0-1.0"} for path in paths
        ],
        "sequences": {"sequence_length": LENGTH},
    }  # fmt: skip
    manifest = folder / "run" / "data" / "manifest.json"
    if not manifest.is_file():
        if not all(path.is_file() for path in paths):
            text = real_inputs(folder / "inputs").text.read_text()
            write_records(paths, text, int(size_gb * 1e9 / SOURCES))
        (folder / "prepare.toml").write_text(tomlkit.dumps(config))
        command = [sys.executable, "-m", "potluck", "data", "prepare", folder / "prepare.toml"]
        command += ["--folder", folder / "run", "--processes", str(processes)]
        subprocess.run(command, cwd=REPOSITORY, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return config


def write_records(paths: list[Path], text: str, size_bytes: int) -> None:
    """The plays' paragraphs again and again, each with a number that no other has."""
    lines = records([part for part in text.split("\n\n") if part.strip()])
    for path in paths:
        written = 0
        with path.open("w") as file:
            while written < size_bytes:
                written += file.write(next(lines))


# ---- the scenes ------------------------------------------------------------------------------------------------------


def play(folder: Path, prepared: Path, config: dict[str, Any], options: argparse.Namespace) -> list[Scene]:
    """All scenes, one after the other, of one run."""
    shards = prepared / "run" / "data" / "shards"
    shutil.copytree(prepared / "run" / "data", folder / "run" / "data", copy_function=os.link)
    with (
        WarmStart() as starter,
        Mirror(shards, options.mbit * 1e6 / 8) as mirror,
        Community(
            folder,
            config | {"sequences": config["sequences"] | {"mirrors": [mirror.url]}},
            starter=starter,
            tokens_per_s=TOKENS_PER_S,
        ) as run,
    ):
        run.host()
        members = Members(run, shards, cache_gb=options.cache)
        scenes = []
        for scene, name in (
            (_join, "three join"),
            (_restart, "one starts again"),
            (_dead_source, "the mirror dies in a shard"),
            (_damaged_cache, "damaged shards in a cache"),
            (_damaged_source, "damaged shards at the mirror"),
            (_full_disk, "a full disk"),
            (_small_cache, "too small a cache"),
        ):
            scenes.append(Scene(name))
            print(f"{name} …", flush=True)
            try:
                scene(scenes[-1], members, mirror)
            except AssertionError as error:
                scenes[-1].missed.append(str(error).splitlines()[0])
        scenes[-1].must(not divergences(run.parts[1:]), "one state in each round")
        return scenes


def _join(scene: Scene, members: Members, mirror: Mirror) -> None:
    """What each downloads, when it takes its first step, what its cache and its memory come to."""
    three = [members.start(name) for name in NAMES]
    for member in three:
        member.wait_step(WAIT_S)
    memory = {member.name: member.resident_bytes() for member in three}
    enough = OVER * members.cache_bytes
    eventually(lambda: all(member.fetched_bytes >= enough for member in three), WAIT_S)
    for member in three:
        fetched, first = member.fetched(), member.first_step
        before = sum(item.bytes for item in fetched if item.time <= first)
        grown = member.resident_bytes() - memory[member.name]
        scene.tell(
            f"{member.name}: first step after {first - member.started:.1f} s and {_mb(before)} of shards, "
            f"then {_mb(member.fetched_bytes)} in {member.process.round} rounds, cache {_mb(member.most_cached)} at "
            f"most, resident {_mb(memory[member.name])} and then {grown / 1e6:+,.1f} MB"
        )
        scene.must(before <= members.cache_bytes / 2, f"{member.name} waited for more than it needs")
        scene.must(member.most_cached <= members.cache_bytes, f"{member.name}'s cache is over its limit")
        scene.must(grown <= MOST_GROWN, f"{member.name}'s memory grew")
        scene.must({item.source for item in fetched} == {mirror.url}, f"{member.name} asked another than the mirror")
    scene.tell(f"the mirror sent {_mb(sum(mirror.sent.values()))}")


def _restart(scene: Scene, members: Members, mirror: Mirror) -> None:
    """Nothing that lies in the cache is fetched again."""
    scene.must(members["bob"].process.stop() == 0, "it did not leave")
    here = members["bob"].cached()
    bob = members.start("bob")
    bob.wait_step(WAIT_S)
    fetched = bob.fetched()
    before = sum(item.bytes for item in fetched if item.time <= bob.first_step)
    bob.wait_rounds(ROUNDS_AFTER, WAIT_S)
    gone = bob.thrown_away()
    again = [item for item in bob.fetched() if item.shard in here - gone]
    scene.tell(
        f"first step after {bob.first_step - bob.started:.1f} s and {_mb(before)} of shards; "
        f"of {len(here)} in its cache {len(again)} fetched again"
    )
    scene.must(not again, "shards of its cache were fetched again")


def _dead_source(scene: Scene, members: Members, mirror: Mirror) -> None:
    """Whoever was fetching goes on from the host, and is in every round meanwhile."""
    first = {name: members[name].process.round for name in NAMES}
    mirror.die(after_bytes=3_000_000)
    eventually(lambda: mirror.broken, WAIT_S)
    shard, died = mirror.broken[0].removesuffix(".safetensors"), time.time()

    def went_on() -> list[tuple[Member, Fetched]]:
        found = ((members[name], item) for name in NAMES for item in members[name].fetched())
        return [(member, item) for member, item in found if item.shard == shard and item.source == COORDINATOR]

    eventually(went_on, WAIT_S)
    member, item = went_on()[0]
    last = member.process.round + ROUNDS_AFTER
    for name in NAMES:
        members[name].process.wait_round(last, WAIT_S)
    lost = [
        f"{number} by {name}"
        for name in NAMES
        for number, event in members[name].process.committed().items()
        if first[name] < number <= last and not event["took_part"]
    ]
    scene.tell(
        f"{member.name} had half a shard, and the rest from the host {item.time - died:.1f} s later; "
        f"of rounds {first[member.name] + 1} to {last} missed: {', '.join(lost) or 'none'}"
    )
    scene.must(not lost, "a round was missed")
    scene.must(f"could not be fetched from {mirror.url}" in member.process.said, "it was not said")
    mirror.live()


def _damaged_cache(scene: Scene, members: Members, mirror: Mirror) -> None:
    """Every shard in the cache has other bytes: what is read of them is fetched again."""
    scene.must(members["bob"].process.stop() == 0, "it did not leave")
    damaged = members["bob"].damage()
    bob = members.start("bob")
    bob.wait_step(WAIT_S)
    bob.wait_rounds(1, WAIT_S)
    again = {item.shard for item in bob.fetched()} & damaged
    scene.tell(
        f"{len(damaged)} damaged, {len(again)} of them read and fetched again, "
        f"first step after {bob.first_step - bob.started:.1f} s"
    )
    scene.must(again, "none was fetched again")
    scene.must(not again & bob.wrong(), "a wrong shard is in the cache")
    scene.must("is damaged, and fetched again" in bob.process.said, "it was not said")


def _damaged_source(scene: Scene, members: Members, mirror: Mirror) -> None:
    """The mirror's shards have other bytes: those of the host are taken."""
    bob = members["bob"]
    mirror.damaged |= {path.name for path in mirror.folder.iterdir()}
    eventually(lambda: any(item.source == COORDINATOR for item in bob.fetched()), WAIT_S)
    bob.wait_rounds(ROUNDS_AFTER, WAIT_S)
    from_host = {item.shard for item in bob.fetched() if item.source == COORDINATOR}
    lines = [line for line in bob.process.said.splitlines() if f"could not be fetched from {mirror.url}" in line]
    scene.tell(f"{len(from_host)} from the host instead; said: “{lines[-1].rpartition(': ')[2]}”" if lines else "")
    scene.must(lines and "expected" in lines[-1], "it was not said")
    scene.must(not from_host & bob.wrong(), "a wrong shard is in the cache")
    mirror.damaged.clear()


def _full_disk(scene: Scene, members: Members, mirror: Mirror) -> None:
    """A disk with less room than the cache may take; then with none at all."""
    home = members.run.home("dora")
    with small_disk(home, DISK_BYTES) as is_there:
        if not is_there:
            scene.tell("skipped: a small disk cannot be mounted here, that needs root on Linux")
            return
        dora = members.start("dora", cache_gb=5.0)
        dora.wait_step(WAIT_S)
        eventually(lambda: dora.thrown_away() or dora.process.ended, WAIT_S)
        free = shutil.disk_usage(home).free
        scene.tell(
            f"of {_mb(DISK_BYTES)} a cache of 5 GB took {_mb(dora.most_cached)} at most, {_mb(free)} stayed free"
        )
        scene.must(dora.process.running and free > 0, "it ended")
        fill(home)
        before = [members[name].rounds_taken() for name in ("alice", "dora")]
        members["alice"].wait_rounds(3 * ROUNDS_AFTER, WAIT_S)
        after = [members[name].rounds_taken() for name in ("alice", "dora")]
        word = next((line for line in dora.process.said.splitlines() if "disk is full" in line), "")
        scene.tell(
            f"filled to the last byte it is in {after[1] - before[1]} rounds while another is in "
            f"{after[0] - before[0]}, and says {'“…' + word[-60:] + '”' if word else 'nothing'}"
        )
        scene.must(word or after[1] > before[1], "it stood still without a word")
        (home / FILLER).unlink()
        dora.wait_rounds(1, WAIT_S)
        scene.tell("with room again it takes part")
        dora.process.kill()


def _small_cache(scene: Scene, members: Members, mirror: Mirror) -> None:
    """A limit that no shard fits into is refused."""
    emil = members.start("emil", cache_gb=0.001).process
    code, word = emil.wait(), " ".join(emil.said.split())
    scene.tell(f"--data-cache 0.001: exit code {code}, “{word[-80:]}”")
    scene.must(code == 2 and "0.1" in word, "it was not refused with a word")


def _mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
