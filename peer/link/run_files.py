"""A run's files from its coordinator: genesis, base model and data, each held against what vouches for it.

`CoordinatorClient.fetch_run_files` calls this; while the coordinator is away `admission` asks whether what is on disk
will do. What is there and whole is not fetched again. The genesis is verified here, as the signed checkpoint that it
is, by the root key in the invite, and nowhere else on its way into a model; all else has its digest in the run spec.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from peer.link.answers import RemoteFile, RunDescription, RunFiles
from peer.link.downloads import STREAM_TIMEOUT_S, Progress, fetch, read_url
from protocol.data_spec import PinnedData, PinnedDataSet
from protocol.disk import set_aside
from protocol.errors import VerificationError
from protocol.keys import fingerprint, load_public_pem
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.verify import verify_checkpoint

if TYPE_CHECKING:
    from peer.link.client import CoordinatorClient

logger = logging.getLogger(__name__)


def fetch_run_files(
    client: CoordinatorClient,
    run: RunDescription,
    certificate: str,
    folder: Path,
    progress: Progress | None = None,
    *,
    to_train: bool = True,
) -> RunFiles:
    """Fetch a run's files into `folder`.

    Args:
        run: as `client.get_run` gave it.
        to_train: without that, only the genesis is needed.

    Raises: as `CoordinatorClient.fetch_file`; VerificationError: the genesis does not hold, and was deleted.
    """
    genesis, base_model, data = folder / "step-000000", folder / "base-model", data_path(folder, run.card.spec)

    def bring(files: Iterable[RemoteFile], into: Path) -> None:
        for file in files:
            _make_way(into / file.path, folder / "damaged")
            client.fetch_file(certificate, file.sha256, file.size_bytes, into / file.path, progress)

    root = fingerprint(load_public_pem(run.root_public_pem))  # the invite's: `get_run` has compared it
    bring(run.genesis_files, genesis)
    if not is_genesis(genesis, run.card, root):  # something else may lie beside the files: once more, into a new folder
        set_aside(genesis, folder / "damaged")
        bring(run.genesis_files, genesis)
        if not is_genesis(genesis, run.card, root):
            shutil.rmtree(genesis)
            raise VerificationError(
                "the genesis that the coordinator offers does not hold, or is not this run's",
                "tell the host; nothing was loaded",
            )
    if not to_train:
        return RunFiles(genesis, None, data)
    bring(run.model_files, base_model)
    _make_way(data, folder / "damaged")
    _fetch_data(client, run.card.spec.data, certificate, data, progress)
    return RunFiles(genesis, base_model if run.model_files else None, data)


def data_path(folder: Path, spec: RunSpec) -> Path:
    """Where a run's data lie: the file, or the manifest of what was prepared."""
    return folder / "data" / ("manifest.json" if isinstance(spec.data, PinnedDataSet) else "data")


def is_genesis(genesis: Path, card: RunCard, root: str) -> bool:
    """Whether a folder is the run's genesis, whole and signed.

    Args:
        root: fingerprint of the root key, from the invite.

    Raises:
        InputError: there is no such folder.
    """
    report = verify_checkpoint(genesis, trusted={root})
    facts = (report.facts.get("run"), report.facts.get("round"), report.facts.get("state"))
    if not report.ok:
        logger.info("%s: %s", genesis, report.verdict)
    return report.ok and facts == (card.run, 0, card.genesis)


def _fetch_data(
    client: CoordinatorClient,
    pinned: PinnedData | PinnedDataSet,
    certificate: str,
    destination: Path,
    progress: Progress | None,
) -> None:
    if isinstance(pinned, PinnedDataSet) or pinned.url is None:
        client.fetch_file(certificate, pinned.digest, pinned.size_bytes, destination, progress)
        return
    url = pinned.url

    def read(offset: int) -> Iterator[bytes]:
        return client.rates.down.slowed(read_url(url, offset, client.timeout_s, STREAM_TIMEOUT_S))

    fetch(read, "data", pinned.digest, pinned.size_bytes, destination, progress)


def _make_way(path: Path, aside: Path) -> None:
    """A folder that lies where a file belongs, or where it is while it comes, is moved away."""
    for name in (path, path.with_name(path.name + ".part")):
        if name.is_dir():
            logger.warning(
                "%s is a folder, not the file that belongs there; it is kept as %s", name, set_aside(name, aside)
            )
