"""A unit of systemd for this user: the commands that install, start, stop and remove it. Its text is in `unit`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from peer.service.plan import ServicePlan, forget, runs_among
from peer.service.steps import Call, Delete, Runner, Step, Write
from peer.service.unit import unit_text


class Systemd:
    """The manager of this user's services.

    Args:
        folder: of the user's units.
        version: of systemd; 0: not known.
    """

    def __init__(self, folder: Path, version: int) -> None:
        self._folder, self._version = folder, version

    def installed(self, home: Path) -> list[str]:
        """The runs of a home's services, each by 16 hex digits."""
        return runs_among((path.stem for path in self._folder.glob("potluck-*.service")), home)

    def install(self, plan: ServicePlan) -> list[Step]:
        unit = Write(self._unit(plan.name), unit_text(plan, self._version).encode())
        return [plan.keep_invite, unit, _call("daemon-reload"), _call("enable", "--now", f"{plan.name}.service")]

    def start(self, name: str) -> list[Step]:
        return [_call("start", f"{name}.service")]

    def stop(self, name: str) -> list[Step]:
        return [_call("stop", f"{name}.service")]

    def uninstall(self, name: str, home: Path, run: str) -> list[Step]:
        return [
            _call("disable", "--now", f"{name}.service"),
            Delete(self._unit(name)),
            forget(home, run),
            _call("daemon-reload"),
            Call((*_call("reset-failed").command, f"{name}.service"), may_fail=True),
        ]

    def logs(self, names: Sequence[str], logs: Sequence[Path], *, lines: int, follow: bool) -> list[str]:
        """The command that shows what the peers have said."""
        units = [f"--user-unit={name}.service" for name in names]
        return ["journalctl", *units, f"--lines={lines}", *(["--follow"] if follow else ["--no-pager"])]

    def starts_with(self, runner: Runner, user: str) -> str:
        """When it starts after a reboot, for a person."""
        done = runner.run(["loginctl", "show-user", user, "--property=Linger", "--value"])
        if done.code == 0 and done.output.strip() == "yes":
            return "it starts with this computer"
        return (
            "it starts when you log in, and ends when you log out; for it to start with the computer: "
            f"loginctl enable-linger {user}"
        )

    def _unit(self, name: str) -> Path:
        return self._folder / f"{name}.service"


def version_of(runner: Runner) -> int:
    """Of the systemd that runs here; 0: it does not say."""
    match = re.match(r"systemd (\d+)", runner.run(["systemctl", "--version"]).output)
    return int(match[1]) if match else 0


def _call(*arguments: str) -> Call:
    return Call(("systemctl", "--user", *arguments))
