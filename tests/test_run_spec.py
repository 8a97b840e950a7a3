"""run.toml and the run spec: checked once, pinned for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.presets import PRESETS
from coordinator.run_config import RunConfig
from protocol import canonical
from protocol.errors import RunSpecError
from protocol.run_spec import RunSpec
from tests.kit.builders import make_spec

TOML = """
[run]
name = "tiny"
[model]
path = "model"
license = "MIT"
[data]
path = "data.txt"
license = "MIT"
[sync]
round_tokens = 4096
"""


def load(tmp_path: Path, text: str) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return RunConfig.load(path)


def test_the_smallest_run_toml_is_enough(tmp_path: Path) -> None:
    config = load(tmp_path, TOML)
    assert config.run.name == "tiny"
    assert (config.method.kind, config.sync.wire) == ("full", "int4")


@pytest.mark.parametrize(
    ("extra", "words", "hint"),
    [
        ("[synk]\nmethod = 1", "unknown key 'synk'", "'sync'"),
        ("[inner]\nlearning_rate = 1", "unknown key 'inner.learning_rate'", "known keys"),
        ("[inner]\nbetass = [0.9, 0.99]", "unknown key 'inner.betass'", "'betas'"),
        ("[method]\nkind = 'half'", "method.kind", ""),
        ("[inner]\nlr = -1.0", "inner.lr", ""),
        ("[inner]\nlr = nan", "inner.lr", ""),
        ("[inner]\nbatch = 9\nmicro_batch = 2", "multiple of micro_batch", ""),
        ("[outer]\nmomentum = 1.0", "outer.momentum", ""),
        ("overlap = true\n[outer]\nmomentum = 0.9\nnesterov = true", "run.toml: sync.overlap and outer.nesterov", ""),
        ("[host]\ncertificate_hours = 0.0", "host.certificate_hours", ""),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, extra: str, words: str, hint: str) -> None:
    with pytest.raises(RunSpecError) as caught:
        load(tmp_path, TOML + extra)
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert "run.toml" in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('path = "model"', "", "exactly one of path, hub, checkpoint"),
        ('path = "model"', 'path = "model"\nhub = "a/b"\nrevision = "c"', "exactly one of path, hub, checkpoint"),
        ('path = "model"', 'hub = "a/b"', "hub and revision go together"),
        ("round_tokens = 4096", "", "round_tokens or round_seconds"),
        ('name = "tiny"', 'name = "Tiny Run"', "run.name"),
        ('license = "MIT"', "", "license"),
        ("[run]", "[run", "not TOML"),
    ],
)
def test_a_run_toml_that_leaves_something_open_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(RunSpecError, match=words):
        load(tmp_path, TOML.replace(old, new, 1))


def test_a_missing_or_oversize_run_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunSpecError, match="No such file"):
        RunConfig.load(tmp_path / "absent.toml")
    with pytest.raises(RunSpecError, match="at most"):
        load(tmp_path, "#" * 70_000)


def test_the_pinned_spec_names_nothing_of_the_hosts_machine(tmp_path: Path) -> None:
    config = load(tmp_path, TOML + "[host]\nlisten = '10.9.8.7:1'\ncode = 'secret'\n")
    spec = config.pin(
        model_digest="1" * 64, model_name="m", parameters=1, trainable=1, data_digest="2" * 64, data_size_bytes=1
    )
    assert b"10.9.8.7" not in spec.to_bytes()
    assert b"secret" not in spec.to_bytes()
    assert b"data.txt" not in spec.to_bytes()


def test_a_pinned_spec_reads_back_with_the_same_digest() -> None:
    spec = make_spec()
    again = RunSpec.from_bytes(spec.to_bytes())
    assert again == spec
    assert again.digest == spec.digest == canonical.sha256_hex(spec.to_bytes())


def test_the_digest_depends_on_the_seed_and_the_data() -> None:
    spec = make_spec()
    other_data = spec.model_copy(update={"data": spec.data.model_copy(update={"digest": "3" * 64})})
    assert len({spec.digest, make_spec(seed=1).digest, other_data.digest}) == 3


def test_a_pinned_spec_in_another_form_is_refused() -> None:
    data = make_spec().to_bytes()
    with pytest.raises(RunSpecError, match="canonical form"):
        RunSpec.from_bytes(data.replace(b'{"', b'{ "', 1))
    with pytest.raises(RunSpecError, match="unknown key"):
        RunSpec.from_bytes(b'{"aa":1,' + data[1:])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_enough_and_is_pinned_as_what_it_stands_for(tmp_path: Path, name: str) -> None:
    config = load(tmp_path, f'preset = "{name}"\n' + TOML.partition("[sync]")[0])
    assert config.sync.round_seconds == "auto"
    written = RunConfig.model_validate(config.model_dump(exclude={"preset"}))
    pins = {"model_digest": "0" * 64, "model_name": "m", "parameters": 1, "trainable": 1}
    pinned = [item.pin(**pins, data_digest="0" * 64, data_size_bytes=1).digest for item in (config, written)]
    assert pinned[0] == pinned[1]


def test_what_the_host_writes_wins_over_the_preset(tmp_path: Path) -> None:
    config = load(tmp_path, 'preset = "lora"\n' + TOML + 'wire = "fp16"\n[method]\nrank = 4\n')
    assert (config.sync.wire, config.sync.round_tokens, config.sync.round_seconds) == ("fp16", 4096, None)
    assert (config.method.kind, config.method.rank, config.sync.overlap) == ("lora", 4, True)


def test_an_unknown_preset_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunSpecError, match="preset"):
        load(tmp_path, 'preset = "fast"\n' + TOML)


def test_a_field_that_came_later_is_not_in_the_spec_at_its_default() -> None:
    spec = make_spec()
    assert b"overlap" not in spec.to_bytes()
    overlapped = spec.model_copy(update={"sync": spec.sync.model_copy(update={"overlap": True})})
    assert b'"overlap":true' in overlapped.to_bytes()
    assert RunSpec.from_bytes(overlapped.to_bytes()).sync.overlap
