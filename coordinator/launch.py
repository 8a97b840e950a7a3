"""From run.toml and a folder to a run that can be served: made by `first_start`, or gone on with here. `host` calls it.

A later start finds what the first one made, checks that run.toml still describes the same run, verifies the genesis as
the signed checkpoint that it is, and goes on. A first start that failed or was killed begins again, since nobody can
have joined a run without a genesis.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coordinator import base_model
from coordinator.checkpoints import Checkpoints
from coordinator.evaluator import Evaluator
from coordinator.first_start import first_start, source_of
from coordinator.run import Run, make_card, open_ledger
from coordinator.run_config import RunConfig
from coordinator.run_data import TO_LOG, RunData, Telling
from coordinator.run_folder import RunFolder
from coordinator.store.database import RESTORE, Store
from protocol import checkpoint, note
from protocol.data_spec import PinnedDataSet
from protocol.errors import InputError, PotluckError, RunSpecError
from protocol.keys import RootKey
from protocol.run_card import MAX_RUN_CARD_BYTES, RunCard
from protocol.run_spec import RunSpec
from protocol.state import StateManifest
from protocol.verify import verify_checkpoint

logger = logging.getLogger(__name__)


def open_run(config_path: Path, config: RunConfig, folder: RunFolder, telling: Telling = TO_LOG) -> Run:
    """Make the run ready, or go on with the one in the folder, which the caller has locked.

    Args:
        telling: hears what the model is, before it is built, and how far the data are prepared.

    Raises:
        RunSpecError: run.toml describes another run than the one in the folder.
        InputError: the model or the data cannot be used, the folder was damaged, or the disk is full.
        NetworkError: the model's hub, or a source of the data, cannot be reached.
    """
    data = RunData(config, config_path.parent, folder)
    if _is_started(folder):
        return _later_start(config_path, config.host.device, folder, data)
    return first_start(config_path, config, folder, data, telling)


def _is_started(folder: RunFolder) -> bool:
    """Whether the genesis was ever entered in the ledger, as its second leaf."""
    if folder.run_json.exists() and folder.run_card.exists() and _has_leaves(folder):
        return True
    if folder.genesis.exists():
        raise InputError(
            f"{folder.path}: holds a genesis, but not the ledger and the run card that belong to it",
            "restore the folder from a backup, or choose another folder",
        )
    return False


def _has_leaves(folder: RunFolder) -> bool:
    """Whether the ledger holds more than its first leaf."""
    if not folder.store.exists():
        return False
    store = Store(folder.store)
    try:
        with store.reading() as tables:
            return tables.log.size() > 1
    finally:
        store.close()


def _later_start(config_path: Path, device: str, folder: RunFolder, data: RunData) -> Run:
    try:
        spec = RunSpec.from_bytes(folder.run_json.read_bytes())
    except PotluckError as error:
        raise InputError(f"{folder.run_json}: {error.message}", RESTORE) from error
    _check_same(RunConfig.load(config_path, spec), spec, folder, data, config_path)
    root = folder.root_key()
    card, card_bytes = _read_card(folder, spec, root)
    lora = folder.base_model if spec.method.kind == "lora" else None
    if lora is not None and base_model.model_digest(lora) != spec.model.digest:
        raise InputError(f"{lora}: the base model was changed", RESTORE)
    with contextlib.ExitStack() as failed:
        ledger = open_ledger(folder, card, root)
        failed.callback(ledger.store.close)
        checkpoints = Checkpoints(folder, ledger, card, card_bytes, root)
        checkpoints.recover()
        genesis = _verified_genesis(folder, root)
        newest = checkpoints.parent()
        if newest is not None:
            head = note.open_head(checkpoint.read_head_note(newest.folder), card.ledger_key)
            ledger.check_extends(head, str(newest.folder))
        evaluator = Evaluator(spec, folder.genesis / checkpoint.MODEL, lora, data.path, device=device)
        failed.pop_all()
        return Run(folder, card, card_bytes, root, genesis, ledger, checkpoints, evaluator)
    raise AssertionError("an ExitStack swallows nothing")


def _read_card(folder: RunFolder, spec: RunSpec, root: RootKey) -> tuple[RunCard, bytes]:
    """The run card, and its signed bytes. Raises: InputError: it is not the one that belongs to this folder."""
    data = folder.run_card.read_bytes()
    if len(data) > MAX_RUN_CARD_BYTES:
        raise InputError(f"{folder.run_card}: too long for a run card", RESTORE)
    try:
        card = RunCard.open(data, root.public_key)
    except PotluckError as error:
        raise InputError(f"{folder.run_card}: {error.message}", RESTORE) from error
    if card != make_card(folder, spec, card.genesis):
        raise InputError(
            f"{folder.path}: the run card names other keys or another spec than lie in the folder",
            "restore the folder from a backup; a run never changes its keys",
        )
    return card, data


def _verified_genesis(folder: RunFolder, root: RootKey) -> StateManifest:
    """The state of round 0, from its checkpoint: the one place of a later start that verifies it.

    Raises:
        InputError: the checkpoint is not whole, or not what was signed.
    """
    report = verify_checkpoint(folder.genesis, trusted={root.keyid})
    if not report.ok:
        raise InputError(f"{folder.genesis}: {report.verdict}", RESTORE)
    return checkpoint.read_info(folder.genesis).state


def _check_same(config: RunConfig, spec: RunSpec, folder: RunFolder, data: RunData, config_path: Path) -> None:
    """Raises: RunSpecError: run.toml, the model's source or the data are not what the run was started with."""
    now = config.pin(
        apart=isinstance(spec.data, PinnedDataSet) and spec.data.documents_apart,  # the model was tried
        model_digest=spec.model.digest,
        model_name=spec.model.name,
        parameters=spec.model.parameters,
        trainable=spec.model.trainable,
        untrained=spec.model.untrained,
        **data.pins().as_arguments(),
    )
    changes = list(_differences(spec.model_dump(mode="json"), now.model_dump(mode="json"), ""))
    source_path = folder.path / "source.json"
    if source_path.exists() and source_path.read_bytes() != source_of(config):
        changes.append(f"model: was {source_path.read_text(errors='replace')}, is {source_of(config).decode()}")
    if changes:
        raise RunSpecError(
            f"{config_path}: not the run in {folder.path}: {'; '.join(changes[:5])}",
            "change it back, or start a new run: another run.name, or another folder with --folder",
        )


def _differences(before: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:  # a later field at its default is left out
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield f"{where}: was {json.dumps(before)}, is {json.dumps(now)}"
