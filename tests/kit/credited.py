"""A home whose peer has credit in runs, as `tests.kit.builders` makes them."""

from __future__ import annotations

import json
from pathlib import Path

from protocol.keys import PeerIdentity, public_pem
from protocol.trust import trust
from tests.kit.builders import Run
from tests.kit.verifying import write_receipts


def add_run(home: Path, run: Run, *, trusted: bool = True) -> Path:
    """Put a run's card and its first peer's receipts into a home; returns the folder of the receipts."""
    folder = home / "runs" / run.spec.digest[:16]
    folder.mkdir(parents=True)
    (folder / "run-card.json").write_text(json.dumps(run.card_envelope))
    (folder / "root.pem").write_bytes(public_pem(run.root.public_key))
    write_receipts(run, folder / "receipts")
    if trusted:
        trust(run.root.keyid, name=run.spec.run.name, run=run.spec.digest, folder=home)
    return folder / "receipts"


def settle(home: Path, identity: PeerIdentity) -> None:
    """This is who lives there."""
    (home / "identity").write_bytes(identity.to_bytes())
