"""Whether this Potluck and the host's can be in one run. `newcomer` asks before anything is downloaded.

>>> check_versions(SWARM_VERSION, "potluck 0.1.0")
>>> check_versions(SWARM_VERSION + 1, "potluck 9.9.9, commit ab12cd34ab12")  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
protocol.errors.RefusedError: this run needs a newer Potluck: its host has potluck 9.9.9, commit ab12cd34ab12 ...
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from protocol.errors import RefusedError, UnsupportedError
from protocol.installed import this_installation
from protocol.release import MAX_RELEASE_CHARS, this_release
from protocol.rpc import SWARM_VERSION, UNTOLD_VERSION
from protocol.run_card import RunCard

_EXTRA = "peer"  # with which one takes part


def check_versions(version: int, release: str) -> None:
    """Hold what the host's members speak against what this peer does.

    Args:
        version: of the swarm's protocol; 0: the host does not say.
        release: of the host's Potluck, as it says.

    Raises:
        RefusedError: they differ; it says who must upgrade.
    """
    version = version or UNTOLD_VERSION
    theirs = f"{release[:MAX_RELEASE_CHARS] or 'an earlier one'} (protocol {version})"
    ours = f"{this_release()} (protocol {SWARM_VERSION})"
    if version > SWARM_VERSION:
        raise RefusedError(
            f"this run needs a newer Potluck: its host has {theirs}, this is {ours}",
            this_installation().upgrade(_EXTRA),
        )
    if version < SWARM_VERSION:
        raise RefusedError(
            f"this run's host must upgrade its Potluck: it has {theirs}, this is {ours}",
            "ask the host to upgrade; until then the Potluck that the host has can join",
        )


def open_card(data: bytes, root: ec.EllipticCurvePublicKey) -> RunCard:
    """The run card that a host shows. Raises: as `RunCard.open`; it says how to get a newer Potluck."""
    try:
        return RunCard.open(data, root)
    except UnsupportedError as error:
        raise UnsupportedError(error.message, this_installation().upgrade(_EXTRA)) from error
