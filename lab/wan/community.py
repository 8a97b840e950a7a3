"""A host and its peers, each on a host of its own in a `WanLab`: `processes.Community`, over slow lines.

    home = Host(delay_ms=20, up_mbit=20, down_mbit=100)
    with WanLab({"host": home, "alice": home, "bob": home}) as lab, WanCommunity(tmp_path, config, lab) as community:
        community.host()
        alice = community.peer("alice")
        lab.cut("bob")

A part runs on the lab's host of its name.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from lab.processes import Community, LabProcess
from lab.wan.lab import WanLab
from lab.warm_start import WarmProcess, WarmStart

PORT, SWARM_PORT = 4700, 4701


@dataclass(frozen=True)
class _Starter:
    """Starts `potluck` on one host of the lab; `LabProcess` takes it for a `WarmStart`."""

    lab: WanLab
    host: str
    warm: WarmStart | None

    def start(self, arguments: list[str], **options: Any) -> WarmProcess | subprocess.Popen[bytes]:
        if self.warm is not None:
            return self.warm.start(arguments, **options, namespace=self.lab.namespace(self.host))
        return self.lab.run(
            self.host,
            [sys.executable, "-m", "potluck", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=options["stdout"],
            stderr=options["stderr"],
            env=options["environment"],
            cwd=options["folder"],
            start_new_session=True,
        )


class WanCommunity(Community):
    """`Community` in a lab that has a host named "host" and one for each peer."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        lab: WanLab,
        *,
        starter: WarmStart | None = None,
        tokens_per_s: float = 0.0,
    ) -> None:
        super().__init__(folder, config, tokens_per_s=tokens_per_s)
        self._lab, self._warm = lab, starter
        told = tomlkit.loads(self.config.read_text()).unwrap()
        address = lab.address("host")
        told["host"] |= {"listen": f"{address}:{PORT}", "swarm_listen": f"{address}:{SWARM_PORT}"}
        self.config.write_text(tomlkit.dumps(told))

    def peer(self, name: str, *options: str, invite: str | None = None) -> LabProcess:
        """Start a peer on the lab's host of its name, or start it again with the same home."""
        return super().peer(name, "--listen", f"{self._lab.address(name)}:0", *options, invite=invite)

    def start(self, name: str, *arguments: str) -> LabProcess:
        self._starter = _Starter(self._lab, name, self._warm)  # type: ignore[assignment]
        return super().start(name, *arguments)
