"""A host's first start: what it refuses and why, what it leaves behind then, and that the next start works."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from coordinator.addresses import check_addresses
from coordinator.first_start import MAX_NAME_CHARS
from coordinator.host import Host
from coordinator.host_screen import HostScreen
from coordinator.rendezvous import Rendezvous
from coordinator.run_config import HostConfig
from coordinator.run_data import Telling
from coordinator.store.database import Store
from protocol import disk
from protocol.errors import InputError
from protocol.keys import RootKey
from protocol.run_spec import RunSpec
from tests.kit.coordinator import start_host, write_run

SIGNED = ("run.json", "run-card.json", "ledger.db", "checkpoints/step-000000")


def left_in(folder: Path) -> list[str]:
    """What should never be left: empty keys, and what was half written."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.endswith((".new", ".building", ".draft"))
        or (path.suffix in (".key", ".pem", ".crt", ".code") and not path.stat().st_size)
    ]


# ---- a full disk -----------------------------------------------------------------------------------------------------


@contextmanager
def file_limit(size_bytes: int) -> Iterator[None]:
    """No file of this process may grow larger: as a disk that fills up, at the system's own boundary, without root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("lora", [False, True])
def test_a_start_that_cannot_write_says_which_file_and_the_next_one_works(lora: bool, tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source", lora=lora), tmp_path / "run"
    named = set()
    for size_bytes in (0, 100, 200, 600, 4_000, 60_000, 100_000, 140_000):
        with file_limit(size_bytes), pytest.raises(InputError, match="a file may not grow so large here") as caught:
            start_host(config, folder)
        where = Path(caught.value.message.partition(":")[0])
        assert where.is_relative_to(folder) and "\n" not in caught.value.message
        named.add(where.relative_to(folder).parts[0])
        assert left_in(folder) == [] and not (folder / "licenses").exists()
    assert {"lock", "root.pem", "base-model.new", "ledger.db"} <= named
    start_host(config, folder).stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 8 KiB, that a test may make larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=10)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True, timeout=10)


def test_a_disk_that_fills_up_on_the_way_is_told_with_the_file(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "check_room", lambda folder, size_bytes: None)  # something else takes the room meanwhile
    config, named = write_run(tmp_path / "source"), set()
    for kib in (4, 12, 48, 152, 272, 400, 580):
        resize(small_disk, f"{kib}k")
        folder = small_disk / "run"
        with pytest.raises(InputError, match=r"the disk is full$") as caught:
            start_host(config, folder)
        named.add(Path(caught.value.message.partition(":")[0]).relative_to(folder).parts[0])
        assert left_in(folder) == [] and not (folder / "licenses").exists() and "space" in caught.value.hint
    assert {"base-model.new", "genesis.building", "ledger.db", "checkpoints"} <= named
    resize(small_disk, "8m")
    start_host(config, small_disk / "run").stop()


def test_too_small_a_disk_is_told_before_the_model_is_copied(small_disk: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "source")
    resize(small_disk, "900k")
    with pytest.raises(InputError, match=r"run: the disk is full: .* MB are needed, .* MB are free"):
        start_host(config, small_disk / "run")
    assert not any((small_disk / "run" / name).exists() for name in (*SIGNED, "base-model", "genesis.building"))


# ---- the rendezvous, and where a host listens ------------------------------------------------------------------------


def test_a_rendezvous_that_does_not_start_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = "import sys; sys.stderr.write('noise\\nerror: libp2p did not start: no luck\\nbye\\n'); sys.exit(2)"
    with Rendezvous([sys.executable, "-c", program], tmp_path / "log") as rendezvous:
        assert not rendezvous.wait_ready(60)
    assert "the rendezvous is away: libp2p did not start: no luck" in caplog.text
    assert any(record.levelno == logging.WARNING for record in caplog.records), "a host's screen shows warnings"


@pytest.mark.parametrize("key", ["listen", "swarm_listen"])
@pytest.mark.parametrize(
    "text",
    ["4700", ":4700", "0.0.0.0", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:x", "127.0.0.1: 80", "", "127.0.0.1:٣"],
)
def test_what_is_no_address_with_a_port_is_named(key: str, text: str) -> None:
    with pytest.raises(InputError, match=f"host.{key}: expected an address with a port from 0 to 65535"):
        check_addresses(HostConfig(**{"listen": "127.0.0.1:0", "swarm_listen": "127.0.0.1:0", key: text}))


@pytest.mark.parametrize("key", ["listen", "swarm_listen"])
def test_a_taken_port_is_told_before_anything_is_made(key: str, tmp_path: Path) -> None:
    config = write_run(tmp_path / "source")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(config.read_text().replace(f'\n{key} = "127.0.0.1:0"', f'\n{key} = "{where}"'))
        with pytest.raises(InputError, match=f"host.{key}: cannot listen on {where}"):
            start_host(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"listen": "192.0.2.1:0"}, "host.listen: cannot listen on 192.0.2.1:0"),
        ({"listen": "no.such.host.invalid:0"}, "host.listen: cannot listen on no.such.host.invalid:0"),
        ({"swarm_listen": "localhost:0"}, "host.swarm_listen: expected an address"),
        ({"listen": "127.0.0.1:47011", "swarm_listen": "127.0.0.1:47011"}, "the same port, 47011"),
        ({"public_address": "http://example.org"}, "host.public_address: expected a name"),
        ({"public_address": "example.org:99999"}, "host.public_address: expected a name"),
        ({"public_address": "example.org:0"}, "host.public_address: expected a name"),
        ({"public_address": "two words"}, "host.public_address: expected a name"),
        ({"public_address": ""}, "host.public_address: expected a name"),
        ({"public_address": "example.org"}, "goes with a fixed host.swarm_listen, got port 0"),
    ],
)
def test_an_address_that_cannot_serve_is_refused(values: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_addresses(HostConfig(**{"listen": "127.0.0.1:0", "swarm_listen": "127.0.0.1:0"} | values))


def test_addresses_that_can_serve_are_taken() -> None:
    for listen in ("127.0.0.1:0", "localhost:0", "0.0.0.0:0"):
        check_addresses(HostConfig(listen=listen, swarm_listen="127.0.0.1:0"))
    for public in ("example.org", "example.org:4700", "2001:db8::1"):
        check_addresses(HostConfig(listen="127.0.0.1:0", swarm_listen="127.0.0.1:47012", public_address=public))


# ---- names, and what is found before a signature ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m" * 240, "ü" * 120, "two\nlines", os.fsdecode(b"latin-\xe4")])
def test_a_model_may_lie_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    (tmp_path / "source" / "model").rename(tmp_path / "source" / name)
    (tmp_path / "source" / "m").symlink_to(name)
    config.write_text(config.read_text().replace('path = "model"', 'path = "m"'))
    start_host(config, folder).stop()
    called = RunSpec.from_bytes((folder / "run.json").read_bytes()).model.name
    assert 1 <= len(called) <= MAX_NAME_CHARS and called.isprintable() and called[:4] == name[:4].replace("\n", "�")


@pytest.mark.parametrize("key", ["model", "text.txt"])
@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "a\\u0000b", "run.toml/x"])
def test_a_path_that_leads_nowhere_is_told(key: str, path: str, tmp_path: Path) -> None:
    config = write_run(tmp_path / "source")
    config.write_text(config.read_text().replace(f'path = "{key}"', f'path = "{path}"'))
    with pytest.raises(InputError, match=r"no such (model folder|data file)"):
        start_host(config, tmp_path / "run")


def test_links_to_the_data_and_to_the_run_folder_are_followed(tmp_path: Path) -> None:
    config = write_run(tmp_path / "source")
    (tmp_path / "source" / "text.txt").rename(tmp_path / "elsewhere.txt")
    (tmp_path / "source" / "text.txt").symlink_to(tmp_path / "elsewhere.txt")
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    start_host(config, tmp_path / "run").stop()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop"):
        start_host(config, tmp_path / "loop")


def test_a_model_in_the_runs_own_folder_is_not_cleared_away(tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    folder.mkdir()
    (tmp_path / "source" / "model").rename(folder / "base-model")
    config.write_text(config.read_text().replace('path = "model"', f'path = "{folder / "base-model"}"'))
    with pytest.raises(InputError, match="in the run's own folder"):
        start_host(config, folder)
    assert (folder / "base-model" / "model.safetensors").is_file()


def _tell(config: Path, folder: Path) -> tuple[list[str], InputError | None]:
    told: list[str] = []
    host = Host(config, folder, rendezvous=False, telling=Telling(told.append))
    try:
        host.start()
    except InputError as error:
        return told, error
    host.stop()
    return told, None


def test_a_host_says_what_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, error = _tell(write_run(tmp_path / "source"), tmp_path / "run")
    assert error is None and told[0].startswith("model: LlamaForCausalLM, ")
    assert told[1:] == ["updates are averaged as: mean, clip 2"]
    HostScreen(as_json=False).note(told[0])
    HostScreen(as_json=True).note(told[0])
    shown = capsys.readouterr()
    assert shown.err == f"{told[0]}\n" and json.loads(shown.out)["text"] == told[0]


def test_data_that_the_model_cannot_take_are_found_before_anything_is_signed(tmp_path: Path) -> None:
    """A token that was added beyond the embeddings, and that the text holds."""
    config, folder = write_run(tmp_path / "source"), tmp_path / "run"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "source" / "model")
    tokenizer.add_tokens(["marshmallow"])
    tokenizer.save_pretrained(tmp_path / "source" / "model")
    with (tmp_path / "source" / "text.txt").open("a") as text:
        text.write("marshmallow\n" * 40)
    before = threading.active_count()
    _, error = _tell(config, folder)
    assert error is not None and "(marshmallow), the model has 14 rows of embeddings" in error.message
    assert not any((folder / name).exists() for name in (*SIGNED, "base-model", "genesis.building"))
    assert threading.active_count() <= before


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_that_is_refused_leaves_nothing_that_another_start_would_take(lora: bool, tmp_path: Path) -> None:
    config, folder = write_run(tmp_path / "source", lora=lora), tmp_path / "run"
    weights = tmp_path / "source" / "model" / "model.safetensors"
    sound = load_file(weights)
    save_file(sound | {"model.norm.weight": sound["model.norm.weight"] * float("nan")}, weights, {"format": "pt"})
    _, error = _tell(config, folder)
    assert error is not None and "the tensor model.norm.weight holds NaN" in error.message
    assert not any((folder / name).exists() for name in (*SIGNED, "base-model", "genesis.building"))
    save_file(sound, weights, {"format": "pt"})
    assert _tell(config, folder)[1] is None
    spec = json.loads((folder / "run.json").read_text())
    assert spec["model"]["parameters"] >= spec["model"]["trainable"] > 0
    Store(folder / "ledger.db").close()
    assert RootKey.load_or_create(folder / "root.pem")
