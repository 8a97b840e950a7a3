"""Fetches one commit of a model from a hub: weights as safetensors, configuration and tokenizer, and nothing that runs.

The one place that reaches for the network in the tensor code, and only when a host's run.toml names a hub.
"""

from __future__ import annotations

from pathlib import Path

from protocol.errors import InputError, NetworkError

_ALLOWED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "*.txt", "LICENSE*")
_TIMEOUT_S = 30.0  # for the hub to begin an answer


def fetch_model(repository: str, revision: str, cache: Path, endpoint: str | None = None) -> Path:
    """Download a model and return its local folder; what is there already is not fetched again.

    Args:
        repository: "owner/name".
        revision: a commit; a tag works, and the run is pinned to what it was.
        cache: huggingface_hub's cache folder.
        endpoint: the hub's URL; default: huggingface_hub's.

    Raises:
        InputError: the hub has no such model or revision, or asks for a login.
        NetworkError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{repository}@{revision}"
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint,
            allow_patterns=list(_ALLOWED),
            etag_timeout=_TIMEOUT_S,
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{name}: the hub has no such model or revision", "check model.hub and model.revision"
        ) from error
    except LocalEntryNotFoundError as error:
        raise NetworkError(f"{name}: the hub cannot be reached", "check the network, or give model.path") from error
    except (HfHubHTTPError, OSError) as error:
        raise NetworkError(f"{name}: {error}", "try again, or give model.path") from error
    return Path(folder)
