"""The committed protobuf code is what the .proto files generate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.service import CoordinatorService
from lab import REPOSITORY
from protocol.coordinator_pb2 import DESCRIPTOR


@pytest.mark.parametrize("name", ["coordinator", "swarm"])
def test_generated_protobuf_code_is_not_stale(name: str, tmp_path: Path) -> None:
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    outputs += [f"--grpc_python_out={tmp_path}"] if name == "coordinator" else []
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, f"protocol/{name}.proto"]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=60)
    made = sorted((tmp_path / "protocol").iterdir())
    assert len(made) == len(outputs)
    for path in made:
        committed = REPOSITORY / "protocol" / path.name
        assert committed.read_bytes() == path.read_bytes(), f"{path.name} is stale: run scripts/proto"


def test_the_coordinator_answers_every_call_of_its_service() -> None:
    """What it left out would be the generated base class's `NotImplementedError`."""
    (service,) = DESCRIPTOR.services_by_name.values()
    calls = {method.name for method in service.methods}
    assert calls and calls <= vars(CoordinatorService).keys()
