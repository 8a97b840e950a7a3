"""Where the doctor's figures come from on a real computer: torch, the disk, and the coordinator of an invite."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from peer.doctor.computer import Computer
from peer.doctor.examination import AskedRun
from peer.doctor.fit import Fit
from peer.doctor.reach import Knocks, Listened, own_address
from peer.link.client import CoordinatorClient
from peer.link.estimate import terms_of
from peer.link.line import MeasuredLine, measure_line
from peer.link.versions import check_versions
from peer.net.listening import split_host_port
from peer.screen.terms import size_text
from peer.training.memory import MomentsKind, base_parameters
from protocol.errors import FormatError, NetworkError
from protocol.invite import Invite


@dataclass(frozen=True)
class RealSources:
    """As `examination.Sources` says.

    Args:
        device: a torch device that can be used.
        precision: the owner's, or auto.
        listen: "host:port" to be reached at.
        moments: as this member would hold them.
    """

    home: Path
    device: str
    precision: str
    listen: str
    invite: Invite | None = None
    client: CoordinatorClient | None = None
    moments: MomentsKind = "fp32"

    def computer(self) -> Computer:
        from peer.doctor.probes import look_at

        return look_at(self.device, self.precision)

    def own_address(self) -> str:
        return own_address()

    def disk(self) -> tuple[int, str]:
        there = next(folder for folder in (self.home, *self.home.absolute().parents) if folder.exists())
        return shutil.disk_usage(there).free, str(self.home)

    def ask(self) -> AskedRun:
        assert self.invite is not None and self.client is not None, "only asked where there is a run"
        run = self.client.get_run()
        check_versions(run.version, run.release)
        try:
            status = self.client.status()
        except (NetworkError, FormatError):  # estimates want it, nothing else does
            status = None
        folder = self.home / "runs" / self.invite.run[:16]
        return AskedRun(run, status, terms_of(self.invite, run, status, folder, moments=self.moments))

    def line(self) -> tuple[MeasuredLine, Listened]:
        assert self.invite is not None and self.client is not None, "only asked where there is a run"
        with Knocks(self.listen) as knocks:
            line = measure_line(self.client, knocks.port)
        own, is_fixed = own_address(self.invite.addresses[0]), split_host_port(self.listen)[1] > 0
        return line, Listened(own, knocks.port, is_fixed, knocks.heard > 0)

    def tokens_per_s(self, asked: AskedRun, fit: Fit) -> float:
        import torch

        from peer.doctor.speed import Measurement, NotMeasured, layer_bytes, usual_shape

        spec = asked.run.card.spec
        shape = usual_shape(asked.run.shape, base_parameters(spec))
        needed, free = layer_bytes(shape), fit.room.free_bytes
        if needed > free:
            raise NotMeasured(
                f"to measure one layer takes about {size_text(needed)}, and {size_text(free)} is free",
                "close other programs, and look again",
            )
        measurement = Measurement(
            spec,
            shape,
            torch.device(self.device),
            fit.sequences,
            recomputing=fit.recomputing,
            wanted=self.precision,
        )
        return measurement.run().tokens_per_s
