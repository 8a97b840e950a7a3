"""Fetches one commit of a model from a hub: weights as safetensors, configuration and tokenizer, and nothing that runs.

The one place that reaches for the network in the tensor code, and only when a host's run.toml names a hub. The result
is a plain folder, without the links that huggingface_hub's own cache is made of:

    cache/owner--name@revision/config.json, model.safetensors, tokenizer.json, ...
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from protocol import disk
from protocol.errors import InputError, NetworkError

_WEIGHTS = "*.safetensors"
_ALLOWED = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "LICENSE*")
_IGNORED = ("*/*", "consolidated*")  # other formats of the same weights
_TIMEOUT_S = 30.0  # for the hub to begin an answer


def fetch_model(
    repository: str,
    revision: str,
    cache: Path,
    endpoint: str | None = None,
    before_weights: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Download a model and return its local folder; a folder that is there already is not fetched again.

    A download that was cut off goes on where it stopped.

    Args:
        repository: "owner/name".
        revision: a commit; a tag works, and the run is pinned to what it was.
        cache: where models are kept, each in a folder of its own.
        endpoint: the hub's URL; default: huggingface_hub's.
        before_weights: called with a folder that has all but the weights; what it raises ends the download.

    Raises:
        InputError: the hub has no such model or revision, or asks for a login; or the disk is full.
        NetworkError: the hub cannot be reached.
    """
    folder = cache / f"{repository}@{revision}".replace("/", "--")
    if folder.is_dir():
        return folder
    staging = folder.with_name(folder.name + ".part")
    _download(repository, revision, staging, endpoint, _ALLOWED)
    before_weights(staging)
    _download(repository, revision, staging, endpoint, (_WEIGHTS,))
    shutil.rmtree(staging / ".cache", ignore_errors=True)  # huggingface_hub's notes, no part of the model
    staging.rename(folder)
    return folder


def _download(repository: str, revision: str, folder: Path, endpoint: str | None, patterns: tuple[str, ...]) -> None:
    from huggingface_hub import errors, snapshot_download

    name = f"{repository}@{revision}"
    try:
        snapshot_download(
            repository,
            revision=revision,
            local_dir=folder,
            endpoint=endpoint,
            allow_patterns=list(patterns),
            ignore_patterns=list(_IGNORED),
            etag_timeout=_TIMEOUT_S,
        )
    except errors.GatedRepoError as error:
        hint = "accept its terms on the hub and log in (`hf auth login`), or give model.path"
        raise InputError(f"{name}: the hub asks for a login", hint) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise InputError(
            f"{name}: the hub has no such model or revision", "check model.hub and model.revision"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        if disk.is_full(error, folder):
            raise disk.disk_error(folder, error) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(
            f"{name}: cannot be fetched from the hub: {reason}", "try again, or give model.path"
        ) from error
