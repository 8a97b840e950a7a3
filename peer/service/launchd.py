"""An agent of launchd (macOS): its property list, and the commands that load, unload and remove it.

launchd neither rotates a log nor knows which exit codes a start would not help against, and its pauses do not grow. So
it runs `potluck service run`, which is `peer.service.keeping`, and that runs `potluck join`.
"""

from __future__ import annotations

import plistlib
from collections.abc import Sequence
from pathlib import Path

from peer.service.plan import NICE, STOP_S, ServicePlan, forget, runs_among
from peer.service.steps import Call, Delete, Runner, Step, Write

THROTTLE_S = 60  # between two starts of what never ends by itself but by a mistake of ours


class Launchd:
    """The manager of this user's agents.

    Args:
        folder: of the user's agents.
        uid: of the user.
    """

    def __init__(self, folder: Path, uid: int) -> None:
        self._folder, self._domain = folder, f"gui/{uid}"

    def installed(self, home: Path) -> list[str]:
        """The runs of a home's services, each by 16 hex digits."""
        return runs_among((path.stem for path in self._folder.glob("potluck-*.plist")), home)

    def install(self, plan: ServicePlan) -> list[Step]:
        agent = Write(self._agent(plan.name), property_list(plan))
        unload = Call(self._unload(plan.name).command, may_fail=True)  # one of before
        return [plan.keep_invite, agent, unload, self._load(plan.name)]

    def start(self, name: str) -> list[Step]:
        return [Call(self._unload(name).command, may_fail=True), self._load(name)]

    def stop(self, name: str) -> list[Step]:
        return [self._unload(name)]

    def uninstall(self, name: str, home: Path, run: str) -> list[Step]:
        unload = Call(self._unload(name).command, may_fail=True)  # it may have been stopped
        return [unload, Delete(self._agent(name)), forget(home, run)]

    def logs(self, names: Sequence[str], logs: Sequence[Path], *, lines: int, follow: bool) -> list[str]:
        """The command that shows what the peers have said."""
        return ["tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, logs)]

    def starts_with(self, runner: Runner, user: str) -> str:
        """When it starts after a reboot, for a person."""
        return "it starts when you log in on this Mac"

    def _agent(self, name: str) -> Path:
        return self._folder / f"{name}.plist"

    def _load(self, name: str) -> Call:
        return Call(("launchctl", "bootstrap", self._domain, str(self._agent(name))))

    def _unload(self, name: str) -> Call:
        return Call(("launchctl", "bootout", f"{self._domain}/{name}"))


def property_list(plan: ServicePlan) -> bytes:
    """The agent's file."""
    value = {
        "Label": plan.name,
        "ProgramArguments": [*plan.program, "service", "run", str(plan.log), *plan.join],
        "WorkingDirectory": str(plan.home),
        "EnvironmentVariables": plan.environment,
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_S,
        "ExitTimeOut": STOP_S,
        "ProcessType": "Background",
        "LowPriorityIO": True,
        "Nice": NICE,
        "Umask": 0o077,
        "SoftResourceLimits": {"Core": 0},
    }
    return plistlib.dumps(value)
