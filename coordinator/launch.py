"""From run.toml and a folder to a run that can be served: pinned, signed, its genesis in the ledger. `host` calls it.

The first start prepares the model, counts it, digests the data, pins the run spec, builds and signs the genesis. A later
start finds all that, checks that run.toml still describes the same run, and goes on. A first start that was killed
begins again, since nobody can have joined a run without a genesis.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from coordinator import base_model
from coordinator.checkpoints import Checkpoints
from coordinator.evaluator import Evaluator
from coordinator.ledger import Ledger
from coordinator.run_folder import RunFolder
from coordinator.store import open_store
from peer.training.data import Dataset, build_dataset, check_data
from peer.training.data_file import check_file
from peer.training.genesis import build_genesis, count_parameters, load_state, prepare_model
from peer.training.model import load_tokenizer
from peer.training.quiet import no_progress_bars
from protocol import canonical, checkpoint, note
from protocol.checkpoint import step_name
from protocol.disk import write_file
from protocol.errors import InputError, RunSpecError
from protocol.files import file_sha256
from protocol.keys import RootKey
from protocol.ledger_entry import RunEntry
from protocol.run_card import MAX_RUN_CARD_BYTES, RunCard
from protocol.run_spec import RunConfig, RunSpec
from protocol.state import StateManifest
from protocol.trust import trusted_roots
from protocol.verify import verify_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is ready to be served."""

    config: RunConfig
    card: RunCard
    card_bytes: bytes
    root: RootKey
    data: Path
    genesis: Path  # the folder step-000000
    genesis_state: StateManifest
    base_model: Path | None  # LoRA only
    ledger: Ledger
    checkpoints: Checkpoints
    evaluator: Evaluator


def open_run(config_path: Path, config: RunConfig, folder: RunFolder) -> Run:
    """Make the run ready, or go on with the one in the folder, which the caller has locked.

    Raises:
        RunSpecError: run.toml describes another run than the one in the folder.
        InputError: the model or the data cannot be used, or the folder was damaged.
        NetworkError: the model's hub cannot be reached.
    """
    data = config_path.parent / config.data.path
    check_file(data)
    if _is_started(folder):
        return _resume(config_path, config, folder, data)
    return _first_start(config_path, config, folder, data)


def _is_started(folder: RunFolder) -> bool:
    """Whether the genesis was ever entered in the ledger, as its second leaf."""
    genesis = folder.checkpoints / step_name(0)
    if folder.run_json.exists() and folder.run_card.exists() and _has_leaves(folder):
        return True
    if genesis.exists():
        raise InputError(
            f"{folder.path}: holds a genesis, but not the ledger and the run card that belong to it",
            "restore the folder from a backup, or choose another folder",
        )
    return False


def _has_leaves(folder: RunFolder) -> bool:
    """Whether the ledger holds more than its first leaf."""
    if not folder.store.exists():
        return False
    engine = open_store(folder.store)
    try:
        with engine.connect() as connection:
            return bool(connection.exec_driver_sql("SELECT COUNT(*) > 1 FROM leaves").scalar_one())
    finally:
        engine.dispose()


def _first_start(config_path: Path, config: RunConfig, folder: RunFolder, data: Path) -> Run:
    check_data(config.data, data)
    logger.info("preparing the model")
    for path in (folder.run_json, folder.run_card, *folder.path.glob("ledger.db*")):
        path.unlink(missing_ok=True)
    _check_source(config, config_path.parent)
    with no_progress_bars():
        model = prepare_model(config.model, config_path.parent, folder.path / "hub")
        total, trainable = count_parameters(config.method, model)
        dataset = _read_data(config, data, model)
        base_model.copy_model(model, folder.base_model)
        spec = config.pin(
            model_digest=base_model.model_digest(folder.base_model),
            model_name=_model_name(config, config_path.parent, model),
            parameters=total,
            trainable=trainable,
            data_digest=file_sha256(data),
            data_size_bytes=data.stat().st_size,
        )
        base_model.copy_licenses(model, folder.licenses)
        build = folder.path / "genesis.building"
        shutil.rmtree(build, ignore_errors=True)
        state = build_genesis(spec, folder.base_model, build)
    write_file(folder.path / "source.json", _source(config))
    write_file(folder.run_json, spec.to_bytes())
    root = folder.root_key()
    card = _card(folder, spec, state.digest)
    card_bytes = card.sign(root).to_bytes()
    write_file(folder.run_card, card_bytes)
    run = _assemble(config, folder, card, card_bytes, root, data, build, state.manifest(), dataset)
    logger.info("evaluating the model before training")
    evaluation = run.evaluator.evaluate()
    run.checkpoints.publish(state.manifest(), evaluation, lambda out: _copy_files(build, out))
    logger.info("genesis %s…: held-out loss %.4f", state.digest[:16], evaluation.held_out_loss)
    return _reopened(run, folder)


def _read_data(config: RunConfig, data: Path, model: Path) -> Dataset:
    """All of the data, as the members will read them, before anything is copied; the host is told what is not used.

    Raises:
        InputError: the data cannot be used; the line is named.
    """
    with tempfile.TemporaryDirectory() as folder:  # the tokenizer as the genesis will hold it
        load_tokenizer(model).save_pretrained(folder)
        dataset = build_dataset(config.data, load_tokenizer(Path(folder)), data)
    for sentence in dataset.notes():
        logger.warning("%s: %s", data, sentence)
    return dataset


def _check_source(config: RunConfig, base: Path) -> None:
    """A checkpoint of another run is verified before anything of it is loaded.

    The folder alone is asked about: that the confirmed key signed these very files, and that members agreed on the
    weights. How that run came to them, back to its genesis, is no promise of this one: its spec pins the weights by their
    digest, and to its members they are a base model like any other. `potluck verify` checks the chain.

    Raises:
        InputError: it does not check out, or is signed by a key that this host has not confirmed.
    """
    if config.model.checkpoint is None:
        return
    trusted = set(trusted_roots()) | ({config.model.key} if config.model.key else set())
    report = verify_checkpoint(base / config.model.checkpoint, trusted=trusted, alone=True)
    if not report.ok:
        hint = "" if report.fingerprint in trusted else "if that key is the right one, name it: model.key in run.toml"
        raise InputError(f"model.checkpoint {config.model.checkpoint}: {report.verdict}", hint)


def _reopened(run: Run, folder: RunFolder) -> Run:
    """The same run, its evaluator reading from the published genesis from now on."""
    shutil.rmtree(folder.path / "genesis.building", ignore_errors=True)
    if run.base_model is None:
        shutil.rmtree(folder.base_model, ignore_errors=True)  # the genesis holds all of it
    run.evaluator.genesis_model = run.genesis / checkpoint.MODEL
    return run


def _resume(config_path: Path, config: RunConfig, folder: RunFolder, data: Path) -> Run:
    spec = RunSpec.from_bytes(folder.run_json.read_bytes())
    config = RunConfig.load(config_path, spec)
    _check_same(config, spec, folder, data, config_path)
    root = folder.root_key()
    card_bytes = folder.run_card.read_bytes()
    if len(card_bytes) > MAX_RUN_CARD_BYTES:
        raise InputError(f"{folder.run_card}: too long for a run card", "restore the folder from a backup")
    card = RunCard.open(card_bytes, root.public_key)
    if card != _card(folder, spec, card.genesis):
        raise InputError(
            f"{folder.path}: the run card names other keys or another spec than lie in the folder",
            "restore the folder from a backup; a run never changes its keys",
        )
    genesis = folder.checkpoints / step_name(0)
    run = _assemble(config, folder, card, card_bytes, root, data, genesis / checkpoint.MODEL, None)
    report = verify_checkpoint(run.genesis, trusted={root.keyid})
    if not report.ok:
        raise InputError(f"{run.genesis}: {report.verdict}", "restore the run folder from a backup")
    newest = run.checkpoints.parent()
    if newest is not None:
        head = note.open_head(checkpoint.read_head_note(newest.folder), card.ledger_key)
        run.ledger.check_extends(head, str(newest.folder))
    if run.base_model is not None and base_model.model_digest(run.base_model) != spec.model.digest:
        raise InputError(f"{run.base_model}: the base model was changed", "restore the run folder from a backup")
    return run


def _assemble(
    config: RunConfig,
    folder: RunFolder,
    card: RunCard,
    card_bytes: bytes,
    root: RootKey,
    data: Path,
    genesis_model: Path,
    genesis_state: StateManifest | None,
    dataset: Dataset | None = None,
) -> Run:
    engine = open_store(folder.store)
    with contextlib.ExitStack() as stack:
        stack.callback(engine.dispose)
        first = RunEntry(run=card.run, genesis=card.genesis, root_key=root.keyid)
        ledger = Ledger(engine, folder.ledger_key(), note.origin(card.spec.run.name, card.run), first)
        checkpoints = Checkpoints(folder, ledger, card, card_bytes, root)
        checkpoints.recover()
        lora = folder.base_model if card.spec.method.kind == "lora" else None
        run = Run(
            config=config,
            card=card,
            card_bytes=card_bytes,
            root=root,
            data=data,
            genesis=folder.checkpoints / step_name(0),
            genesis_state=genesis_state or load_state(genesis_model).manifest(),
            base_model=lora,
            ledger=ledger,
            checkpoints=checkpoints,
            evaluator=Evaluator(card.spec, genesis_model, lora, data, dataset),
        )
        stack.pop_all()
        return run
    raise AssertionError("an ExitStack swallows nothing")


def _card(folder: RunFolder, spec: RunSpec, genesis: str) -> RunCard:
    raw = folder.membership_key().public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    origin = note.origin(spec.run.name, spec.digest)
    return RunCard(
        run=spec.digest,
        spec=spec,
        genesis=genesis,
        ledger_key=note.verifier_key(origin, folder.ledger_key().public_key()),
        membership_key=raw.hex(),
    )


def _check_same(config: RunConfig, spec: RunSpec, folder: RunFolder, data: Path, config_path: Path) -> None:
    """Raises: RunSpecError: run.toml, the model's source or the data are not what the run was started with."""
    now = config.pin(
        model_digest=spec.model.digest,
        model_name=spec.model.name,
        parameters=spec.model.parameters,
        trainable=spec.model.trainable,
        data_digest=file_sha256(data),
        data_size_bytes=data.stat().st_size,
    )
    changes = list(_differences(spec.model_dump(mode="json"), now.model_dump(mode="json"), ""))
    source_path = folder.path / "source.json"
    if source_path.exists() and source_path.read_bytes() != _source(config):
        changes.append(f"model: was {source_path.read_text()}, is {_source(config).decode()}")
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


def _source(config: RunConfig) -> bytes:
    """What run.toml says about where the model comes from: paths are not part of the run spec."""
    return canonical.dumps(config.model.model_dump(mode="json", exclude={"license"}, exclude_none=True))


def _model_name(config: RunConfig, base: Path, model: Path) -> str:
    source = config.model
    if source.hub is not None:
        return f"{source.hub}@{source.revision}"
    if source.checkpoint is not None:
        return f"checkpoint {checkpoint.payload_digest(base / source.checkpoint)}"
    return model.resolve().name


def _copy_files(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, destination)
