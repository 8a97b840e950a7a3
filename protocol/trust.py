"""Whom this user trusts: the root keys of runs whose invites were taken on this machine.

One JSON file in the user's configuration folder (or in $POTLUCK_HOME):

    {"roots":{"<fingerprint>":{"name":"shakespeare","run":"<run digest>"}}}

A key never gets in here because it lay beside a checkpoint; only `potluck join` and `potluck host` put one in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from platformdirs import user_data_path

from protocol import canonical
from protocol.disk import write_file
from protocol.errors import FormatError, InputError
from protocol.keys import MAX_PEM_BYTES, load_signer_pem
from protocol.keys import fingerprint as fingerprint_of

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


def confirmed(given: Iterable[str], folder: Path | None = None) -> tuple[set[str], list[ec.EllipticCurvePublicKey]]:
    """Whom to believe for one question: the runs of this user, and the keys that were given with it.

    Args:
        given: each a PEM file or a fingerprint.

    Returns:
        (the fingerprints of all of them, the keys themselves where a file was given).

    Raises:
        InputError: one is neither, or the file of trusted runs is damaged.
    """
    trusted, keys = set(trusted_roots(folder)), []
    for item in given:
        if os.path.isfile(item):
            keys.append(_public_key(item))
            trusted.add(fingerprint_of(keys[-1]))
        elif re.fullmatch(r"[0-9a-fA-F]{64}", item):
            trusted.add(item.lower())
        else:
            raise InputError(f"--key {item[:200]}: neither a PEM file nor a fingerprint of 64 hex digits")
    return trusted, keys


def _public_key(path: str) -> ec.EllipticCurvePublicKey:
    try:
        with open(path, "rb") as file:
            return load_signer_pem(file.read(MAX_PEM_BYTES + 1))
    except OSError as error:
        raise InputError(f"--key {path}: {error.strerror}", "give a file that you may read") from error
    except FormatError as error:
        raise InputError(
            f"--key {path}: {error.message}", "give a public key, such as the host's coordinator.pub"
        ) from error


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
