"""`potluck fetch`: a run's published checkpoint from its coordinator, verified where it comes to lie.

    FOLDER/step-000020/           the checkpoint
    FOLDER/rounds/round-…json     with `chain`: what the members agreed on, round by round, and all earlier checkpoints

Neither torch nor hivemind is needed. What was fetched is not fetched again, and a file that was broken off goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from peer.link.answers import RemoteFile
from peer.link.client import CoordinatorClient
from peer.link.downloads import Progress
from protocol import checkpoint
from protocol.disk import disk_error, write_file
from protocol.errors import InputError
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.report import Report
from protocol.trust import trust
from protocol.verify import verify_checkpoint


def fetch_checkpoint(
    invite: Invite, folder: Path, home: Path, progress: Progress | None = None, *, chain: bool = False
) -> tuple[Path, Report]:
    """Fetch the newest published checkpoint.

    Args:
        folder: where to put it; made when it is not there.
        home: holds this peer's identity, for only members may fetch, and the keys that it trusts.
        chain: bring all checkpoints and rounds, too, and verify the way from genesis.

    Returns:
        its folder, and what verifying it by the invite's root key comes to.

    Raises:
        CoordinatorAway: it cannot be reached.
        RefusedError: the invite's code is wrong, or the run takes no more members.
        InputError: nothing was published yet, or the disk is full.
        VerificationError: other bytes came than were announced.
    """
    with CoordinatorClient(invite) as client:
        run = client.get_run()
        trust(invite.root, name=run.card.spec.run.name, run=run.card.run, folder=home)
        token = client.enroll(PeerIdentity.load_or_create(home / "identity")).certificate
        number, files = client.checkpoint(token)
        if not number:
            raise InputError("this run has published no checkpoint yet", "try again later")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from error

        def bring(files: Iterable[RemoteFile], round: int) -> Path:
            step = folder / checkpoint.step_name(round)
            for file in files:
                client.fetch_file(token, file.sha256, file.size_bytes, step / file.path, progress)
            return step

        step = bring(files, number)
        if chain:
            bring(run.genesis_files, 0)
            for earlier in {item.round for item in client.status().checkpoints if item.published} - {0, number}:
                bring(client.checkpoint(token, earlier)[1], earlier)
            _bring_rounds(client, token, number, folder / checkpoint.ROUNDS, progress)
    return step, verify_checkpoint(
        step, trusted={invite.root}, checkpoints_dir=folder if chain else None, alone=not chain
    )


def fetch_ledger(invite: Invite, out: Path, home: Path, progress: Progress | None = None) -> None:
    """Fetch a run's whole ledger into one file, unchecked; arguments and errors as for `fetch_checkpoint`."""
    with CoordinatorClient(invite) as client:
        run = client.get_run()
        trust(invite.root, name=run.card.spec.run.name, run=run.card.run, folder=home)
        token = client.enroll(PeerIdentity.load_or_create(home / "identity")).certificate
        file = client.ledger(token)
        client.fetch_file(token, file.sha256, file.size_bytes, out, progress)


def _bring_rounds(client: CoordinatorClient, token: str, last: int, rounds: Path, progress: Progress | None) -> None:
    rounds.mkdir(exist_ok=True)
    for number in range(1, last + 1):
        path = rounds / checkpoint.round_name(number)
        agreement = None if path.exists() else client.agreement(token, number)
        if agreement is not None:
            write_file(path, agreement.to_bytes())
        if progress is not None:
            progress(checkpoint.ROUNDS, number, last)
