"""How this Potluck was installed, and so what to type to change that: add an extra, get a newer one, remove it.

Potluck is on no package index of ours, so no command that is shown here asks one for it: each names the place that this
installation came from, as pip (PEP 610), uv and pipx have noted it.

>>> git = Installed("pipx", "git+https://example.org/potluck")
>>> git.add("peer")
"type: pipx install --force 'potluck[peer] @ git+https://example.org/potluck'"
>>> git.upgrade("peer"), git.remove()
('type: pipx reinstall potluck', 'pipx uninstall potluck')
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

NAME = "potluck"
_ROOT = Path(__file__).resolve().parents[1]


class Installed(NamedTuple):
    """Where this program came from, and what put it here."""

    tool: str  # "pip", "uv pip", "uv tool" or "pipx"
    source: str = ""  # what may stand behind `potluck @`; empty: not known
    checkout: Path | None = None  # that it runs from

    def add(self, extra: str) -> str:
        """What to do where an extra is missing."""
        if self.checkout is not None or self.source:
            return f"type: {self._install(extra)}"
        return (
            f"install it again from where you got it, with the extra {extra}; from a checkout of the project: "
            f"pip install '.[{extra}]'"
        )

    def upgrade(self, extra: str) -> str:
        """What to do where this Potluck is too old, of whoever needs the extra."""
        if self.checkout is not None:
            return f"type: git -C {shlex.quote(str(self.checkout))} pull && {self._install(extra)}"
        if not self.source.startswith("git+"):
            return f"install the newer one as you installed this one, with the extra {extra}"
        if self.tool == "uv tool":
            return f"type: uv tool upgrade --reinstall-package {NAME} {NAME}"
        if self.tool == "pipx":
            return f"type: pipx reinstall {NAME}"
        return f"type: {self.remove()} && {self._install(extra)}"  # two of one version: pip would keep the old one

    def remove(self) -> str:
        """The command that removes the program."""
        match self.tool:
            case "uv tool" | "pipx":
                return f"{self.tool} uninstall {NAME}"
            case "uv pip":
                return f"uv pip uninstall --python {shlex.quote(sys.executable)} {NAME}"
        return f"{shlex.quote(sys.executable)} -m pip uninstall -y {NAME}"

    def _install(self, extra: str) -> str:
        what = shlex.quote(f"{NAME}[{extra}] @ {self.source}")
        if self.checkout is not None:
            what = f"-e {shlex.quote(f'{self.checkout}[{extra}]')}"
        match self.tool:
            case "uv tool" | "pipx":
                return f"{self.tool} install --force {what}"
            case "uv pip":
                return f"uv pip install --python {shlex.quote(sys.executable)} {what}"
        return f"{shlex.quote(sys.executable)} -m pip install {what}"


def this_installation() -> Installed:
    """The one that runs here."""
    try:
        found = importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError:
        return how_installed(_ROOT, Path(sys.prefix), None, "")
    place = Path(str(found.locate_file("")))
    return how_installed(_ROOT, Path(sys.prefix), place, found.read_text("direct_url.json") or "")


def how_installed(root: Path, prefix: Path, place: Path | None, direct_url: str) -> Installed:
    """What the notes of installers say.

    Args:
        root: the folder that the running code lies in.
        prefix: of the environment.
        place: the folder of the installed distribution; None: there is none.
        direct_url: its direct_url.json (PEP 610); empty: it has none.
    """
    tool = _tool(prefix)
    if (root / "pyproject.toml").is_file():
        return Installed(tool, checkout=root)
    url = _source(direct_url) if place is not None and place.resolve() == root else ""
    parts = urlsplit(url)
    gone = parts.scheme == "file" and not Path(unquote(parts.path)).exists()  # a wheel that was thrown away since
    return Installed(tool, "" if gone else url)


def _tool(prefix: Path) -> str:
    if (prefix / "uv-receipt.toml").is_file():
        return "uv tool"
    if (prefix / "pipx_metadata.json").is_file():
        return "pipx"
    return "pip" if importlib.util.find_spec("pip") is not None else "uv pip"


def _source(direct_url: str) -> str:
    """Where a distribution came from, as it may stand behind `potluck @`; empty: not known."""
    try:
        value: Any = json.loads(direct_url)
        url = str(value["url"])
        if "vcs_info" in value:
            revision = value["vcs_info"].get("requested_revision")
            url = f"{value['vcs_info']['vcs']}+{url}" + (f"@{revision}" if revision else "")
        folder = value.get("subdirectory")
        return f"{url}#subdirectory={folder}" if folder else url
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""
