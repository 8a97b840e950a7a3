"""Members of a run with prepared data: what each has fetched, by its own log, and what its cache and memory come to.

members = Members(community, shards, cache_gb=0.1)
bob = members.start("bob")
bob.wait_step(60)
print(bob.first_step - bob.started, bob.fetched(), bob.most_cached)
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from lab import pacing
from lab.processes import Community, LabProcess, eventually

LOOK_S = 0.2
FILLER = "filler"  # the file that takes what is left of a disk
_FETCHED = re.compile(r"^(\S+ \S+) INFO \S+: shard (\w+): [\d.]+ MB from (.+) in ([\d.]+) s$", re.MULTILINE)


class Fetched(NamedTuple):
    """One shard, as the log of a member told."""

    time: float
    shard: str  # digest
    bytes: int
    source: str
    took_s: float


class Member:
    """One process of a member, from its start."""

    def __init__(self, run: Community, name: str, shards: Path, cache_gb: float) -> None:
        self._run, self.name = run, name
        self._sizes = {path.stem[:16]: (path.stem, path.stat().st_size) for path in shards.iterdir()}
        self._step = run.folder / f"{name}-{time.monotonic_ns()}.step"
        environment = run.more_environment
        environment[name] = environment.get(name, {}) | pacing.first_step(self._step)
        self.most_cached = 0  # bytes, at any time
        self._seen: set[str] = set()
        self.started = time.time()
        self.process: LabProcess = run.peer(name, "--data-cache", f"{cache_gb:g}", "--verbose")
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.running:
            self.most_cached = max(self.most_cached, sum(size for _, size in self._files()))
            self._seen |= self.cached()
            time.sleep(LOOK_S)

    def _files(self) -> list[tuple[Path, int]]:
        """Of the cache, with those that are on their way."""
        found = []
        for path in self._run.home(self.name).glob("runs/*/data/shards/*"):
            with contextlib.suppress(OSError):
                found.append((path, path.stat().st_size))
        return found

    def cached(self) -> set[str]:
        """Digests of the shards that are there."""
        return {path.stem for path, _ in self._files() if path.suffix == ".safetensors"}

    def wrong(self) -> set[str]:
        """Those of them whose bytes are others."""
        paths = [path for path, _ in self._files() if path.suffix == ".safetensors"]
        return {path.stem for path in paths if hashlib.sha256(path.read_bytes()).hexdigest() != path.stem}

    def thrown_away(self) -> set[str]:
        """Shards that were there once."""
        return self._seen - self.cached()

    def damage(self) -> set[str]:
        """Flip bits in every shard of the cache; returns their digests."""
        for path, size in self._files():
            with path.open("r+b") as file:
                file.seek(size // 2)
                byte = file.read(1)[0]
                file.seek(size // 2)
                file.write(bytes([byte ^ 0xFF]))
        return self.cached()

    def fetched(self) -> list[Fetched]:
        """All shards since its start, in order."""
        found = []
        for stamp, shard, source, took in _FETCHED.findall(self.process.said):
            moment = datetime.datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()
            found.append(Fetched(moment, *self._sizes[shard], source, float(took)))
        return found

    @property
    def fetched_bytes(self) -> int:
        return sum(item.bytes for item in self.fetched())

    @property
    def first_step(self) -> float:
        """When its first micro-batch was done."""
        return self._step.stat().st_mtime

    def wait_step(self, timeout_s: float) -> None:
        eventually(lambda: self._step.exists() or self.process.ended, timeout_s)
        assert self._step.exists(), f"{self.name} ended: {self.process.said[-300:]}"

    def rounds_taken(self) -> int:
        """In how many rounds it took part."""
        return sum(event["took_part"] for event in self.process.committed().values())

    def wait_rounds(self, count: int, timeout_s: float) -> None:
        """Until it took part in so many more."""
        before = self.rounds_taken()
        eventually(lambda: self.rounds_taken() >= before + count or self.process.ended, timeout_s)
        assert not self.process.ended, f"{self.name} ended: {self.process.said[-300:]}"

    def resident_bytes(self) -> int:
        """Of the process, without p2pd; what it shares with others is counted whole."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


class Members:
    """The newest process of each member.

    Args:
        shards: all of them, as the host has them.
    """

    def __init__(self, run: Community, shards: Path, cache_gb: float) -> None:
        self.run, self._shards, self.cache_gb = run, shards, cache_gb
        self._members: dict[str, Member] = {}

    @property
    def cache_bytes(self) -> float:
        return self.cache_gb * 1e9

    def start(self, name: str, cache_gb: float | None = None) -> Member:
        self._members[name] = Member(self.run, name, self._shards, cache_gb or self.cache_gb)
        return self._members[name]

    def __getitem__(self, name: str) -> Member:
        return self._members[name]


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[bool]:
    """A disk of its own at `folder`; gives whether there is one: that needs root on Linux."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=10)


def fill(folder: Path) -> None:
    """Take all the room that is left on the disk of a folder."""
    with (folder / FILLER).open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(folder).f_bavail == 0
