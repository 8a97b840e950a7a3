"""Says that an owner's credit belongs to a key of which there is no copy: once at each start, until there is one.

>>> import tempfile
>>> reminder = ExportReminder(lambda key, **values: print(key, values["tokens"]), Path(tempfile.mkdtemp()), "12D3Koo")
>>> for tokens in (0, 4096, 8192):
...     reminder.credit(tokens)
identity-not-exported 4,096
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from peer.disk.own_identity import OwnIdentity
from protocol.trust import home as default_home


class ExportReminder:
    """For one start of one peer.

    Args:
        problem: shows a message: its key in `peer.screen.messages`, and its values.
    """

    def __init__(self, problem: Callable[..., None], home: Path, peer_id: str) -> None:
        self._problem, self._home, self._peer_id = problem, home, peer_id
        self._has_told = False

    def credit(self, tokens: int) -> None:
        """So much is in the ledger for this peer."""
        if self._has_told or not tokens or OwnIdentity(self._home).has_copy(self._peer_id):
            return
        self._has_told = True
        elsewhere = [] if self._home == default_home() else ["--home", shlex.quote(str(self._home))]
        command = " ".join(["potluck identity export FILE", *elsewhere])
        self._problem("identity-not-exported", tokens=f"{tokens:,}", command=command)
