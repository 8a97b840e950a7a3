"""Whom this user trusts: the root keys of runs whose invites were taken on this machine.

One JSON file in the user's configuration folder (or in $POTLUCK_HOME):

    {"roots":{"<fingerprint>":{"name":"shakespeare","run":"<run digest>"}}}

A key never gets in here because it lay beside a checkpoint; only `potluck join` and `potluck host` put one in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from protocol import canonical
from protocol.disk import write_file
from protocol.errors import FormatError, InputError

MAX_TRUST_BYTES = 1 << 20


def home() -> Path:
    """Where Potluck keeps what is this user's own: $POTLUCK_HOME, or the platform's place for such data."""
    named = os.environ.get("POTLUCK_HOME")
    return Path(named) if named else user_data_path("potluck", appauthor=False)


def trusted_roots(folder: Path | None = None) -> dict[str, str]:
    """Fingerprint -> name of the run, of all runs this user has taken an invite for.

    Raises:
        InputError: the file is damaged.
    """
    roots: dict[str, Any] = _read(folder or home())["roots"]
    return {fingerprint: str(entry.get("name", "")) for fingerprint, entry in roots.items()}


def trust(fingerprint: str, *, name: str, run: str, folder: Path | None = None) -> None:
    """Trust a root key from now on."""
    folder = folder or home()
    value = _read(folder)
    value["roots"][fingerprint] = {"name": name, "run": run}
    write_file(folder / "trusted.json", canonical.dumps(value), private=True)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "trusted.json"
    try:
        value = canonical.loads(path.read_bytes(), max_bytes=MAX_TRUST_BYTES)
        if not isinstance(value, dict) or not isinstance(value["roots"], dict):
            raise FormatError("expected an object with 'roots'")
        return value
    except FileNotFoundError:
        return {"roots": {}}
    except (FormatError, KeyError, OSError) as error:
        raise InputError(f"{path}: {error}", "move the file away and take the invites again") from error
