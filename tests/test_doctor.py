"""`potluck doctor`: what is not good says what to do, what fails or hangs is told; and `join` stops in time."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from peer.doctor.computer import Computer, NvidiaCard, of_computer, of_disk
from peer.doctor.costs import Power, of_power, of_speed, of_traffic
from peer.doctor.examination import AskedRun, Examination
from peer.doctor.finding import Finding
from peer.doctor.fit import Fit, QuickLook, Room, fit_of, of_download, of_fit
from peer.doctor.reach import Knocks, Listened, of_line, of_own_address, own_address
from peer.doctor.sources import RealSources
from peer.doctor.speed import Measurement, NotMeasured, usual_shape
from peer.link.channel import CoordinatorBusy, CoordinatorOlder
from peer.link.client import CoordinatorClient
from peer.link.clock import Clock
from peer.link.estimate import terms_of
from peer.link.line import MeasuredLine, measure_line
from peer.training.model_shape import ModelShape
from protocol import coordinator_pb2, words
from protocol.errors import CoordinatorAway, FormatError, InputError, PotluckError, SignatureError
from tests.test_terms import INVITE, description, status
from tests.test_words import check_chinese

GB = 10**9
CARD = NvidiaCard("NVIDIA GeForce RTX 3060", "550.54", 170.0)
GOOD = Computer("cuda", CARD.name, Room(12 * GB, 11 * GB, is_own=True), 32 * GB, 20 * GB, "bf16", 8, CARD)


def clock(offset_s: float = 0.0) -> Clock:
    found = Clock()
    found.heard(sent=1000.0 + offset_s, received=1000.0 + offset_s, theirs=1000.0)
    return found


LINE = MeasuredLine(0.05, 2.5e6, 12.5e6, "203.0.113.7", True, clock())
PLACE = Listened("192.168.1.5", 4710, True, True)
NAMES = r"\b(GB|MB|kB|Mbit|NVIDIA|CUDA|LoRA|UPnP|plays|torch|fetch|doctor|limits|Potluck)\b"
OLDER = "the host's Potluck is older, and does not know this call"
PUBLIC = "8.8.4.4"  # 203.0.113.0/24 is for documents, and nobody's on the Internet


def asked(folder: Path, **sync: Any) -> AskedRun:
    run, now = description(**sync), status(tokens_per_s=9000.0)
    return AskedRun(run, now, terms_of(INVITE, run, now, folder))


@dataclass
class Fakes:
    """Sources whose answers a test chooses; an error is raised, `None` never comes."""

    folder: Path
    answers: dict[str, Any] = field(default_factory=dict)

    def _answer(self, name: str, otherwise: Any) -> Any:
        value = self.answers.get(name, otherwise)
        if isinstance(value, PotluckError):
            raise value
        if value is None:
            threading.Event().wait()
        return value

    def computer(self) -> Computer:
        return self._answer("computer", GOOD)

    def own_address(self) -> str:
        return self._answer("own_address", "192.168.1.5")

    def disk(self) -> tuple[int, str]:
        return self._answer("disk", (500 * GB, "/home/me"))

    def ask(self) -> AskedRun:
        return self._answer("ask", asked(self.folder))

    def line(self) -> tuple[MeasuredLine, Listened]:
        return self._answer("line", (LINE, PLACE))

    def tokens_per_s(self, asked: AskedRun, fit: Fit) -> float:
        return self._answer("speed", 1000.0)


def examine(folder: Path, *, has_run: bool = True, limit_s: float = 30.0, **answers: Any) -> dict[str, Finding]:
    found = list(Examination(Fakes(folder, answers), has_run=has_run, price=0.3, limit_s=limit_s).findings())
    assert len({finding.key for finding in found}) == len(found), "each is told once"
    assert all(finding.remedy for finding in found if finding.level != "good"), "what is not good has a remedy"
    return {finding.key: finding for finding in found}


def test_all_is_told_of_a_computer_and_a_run(tmp_path: Path) -> None:
    found = examine(tmp_path)
    names = "device precision memory disk power cost run download line clock reach fit speed share traffic"
    assert list(found) == names.split()
    assert {finding.level for finding in found.values()} <= {"good", "note"}
    assert "500 to 2,000 tokens/s" in found["speed"].text
    assert "about 10 % of a round" in found["share"].text
    assert "36.72 a month" in found["cost"].text, "170 W, 720 hours, 0.30"


def test_without_an_invite_only_this_computer_is_looked_at(tmp_path: Path) -> None:
    found = examine(tmp_path, has_run=False, ask=None, line=None, speed=None)
    assert list(found) == ["device", "precision", "memory", "disk", "power", "cost", "reach"]


def test_a_run_that_begins_is_told_its_traffic_by_the_speed_here(tmp_path: Path) -> None:
    unknown = asked(tmp_path, round_seconds=None, round_tokens=60_000)
    unknown = replace(unknown, terms=replace(unknown.terms, round_s=None))
    assert "an hour" in examine(tmp_path, ask=unknown)["traffic"].text, "a round a minute"
    assert "a round each way" in examine(tmp_path, ask=unknown, speed=InputError("memory"))["traffic"].text


# ---- what fails, and what hangs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [CoordinatorAway("no answer"), SignatureError("another key", "ask the host")])
def test_a_host_that_does_not_answer_is_told_beside_the_rest(error: PotluckError, tmp_path: Path) -> None:
    found = examine(tmp_path, ask=error)
    assert found["run"].level == "bad" and error.message in found["run"].text
    assert "device" in found and "speed" not in found


def test_an_older_host_or_a_busy_one_measures_nothing_and_that_is_no_fault(tmp_path: Path) -> None:
    found = examine(tmp_path, line=CoordinatorOlder("older"))
    assert found["line"].level == "note" and "not measured" in found["line"].text
    assert not {"clock", "reach"} & found.keys() and "speed" in found
    assert "wait a minute" in examine(tmp_path, line=CoordinatorBusy("asked too often"))["line"].remedy


@pytest.mark.parametrize(
    ("hangs", "told"), [("computer", "device"), ("ask", "run"), ("line", "line"), ("speed", "speed")]
)
def test_nothing_is_waited_for_beyond_its_time(hangs: str, told: str, tmp_path: Path) -> None:
    found = examine(tmp_path, limit_s=0.3, **{hangs: None})
    assert found[told].level != "good" and "too long" in found[told].text
    assert "disk" in found


def test_memory_that_runs_out_while_measuring_is_bad(tmp_path: Path) -> None:
    assert examine(tmp_path, speed=InputError("memory ran out", "close programs"))["speed"].level == "bad"


def test_a_run_that_is_over_cannot_be_joined(tmp_path: Path) -> None:
    ended = asked(tmp_path)
    assert examine(tmp_path, ask=replace(ended, run=ended.run._replace(round=100)))["run"].level == "bad"
    assert examine(tmp_path, ask=replace(ended, run=ended.run._replace(round=99)))["run"].level == "good"


class Host:
    """A coordinator that answers `Measure` as a test says; stands for a client and its connection."""

    def __init__(self, **answer: Any) -> None:
        self.connection, self._answer = self, answer

    def call(self, method: str, request: Any, timeout_s: float) -> Any:
        assert method == "Measure" and timeout_s > 0
        honest = {"data": bytes(request.want_bytes), "seen": PUBLIC, "reached": coordinator_pb2.OPEN}
        return coordinator_pb2.MeasureReply(**honest | self._answer)


@pytest.mark.parametrize("answer", [{"data": b""}, {"data": bytes(1 << 20)}, {"seen": "x" * 10_000}, {"seen": ""}])
def test_a_host_that_answers_something_else_is_not_believed(answer: dict[str, Any]) -> None:
    assert measure_line(cast(CoordinatorClient, Host())).seen == PUBLIC
    with pytest.raises(FormatError) as caught:
        measure_line(cast(CoordinatorClient, Host(**answer)))
    assert len(caught.value.message) < 200


def test_an_answer_of_a_newer_host_is_not_taken_for_no() -> None:
    assert measure_line(cast(CoordinatorClient, Host(reached=coordinator_pb2.CLOSED))).reached is False
    assert measure_line(cast(CoordinatorClient, Host(reached=77))).reached is None


@pytest.mark.parametrize("sizes", [{"keys": 48}, {"keys": 128}, {"queries": 63, "keys": 21}, {"queries": 1, "keys": 1}])
def test_a_shape_that_no_layer_can_be_made_of_is_guessed(sizes: dict[str, int]) -> None:
    usual = ModelShape(64, 2, 100, 64, 32, 128, gated=True, tied=True, experts=False)
    assert usual_shape(usual, 10**6) is usual
    assert usual_shape(replace(usual, **sizes), 10**6) == ModelShape.guessed(10**6)


def test_a_guessed_shape_can_be_measured() -> None:
    shape = ModelShape.guessed(10**5)
    speed = Measurement(description().card.spec, shape, torch.device("cpu"), 1, wanted="fp32", limit_s=0.0).run()
    assert speed.tokens_per_s > 0


def test_a_layer_that_memory_cannot_hold_is_not_measured(tmp_path: Path) -> None:
    run, sources = asked(tmp_path), RealSources(tmp_path, "cpu", "fp32", "127.0.0.1:0")
    with pytest.raises(NotMeasured, match="takes about"):
        sources.tokens_per_s(run, Fit(Room(64 * GB, 1000), 10 * GB, False, 0))


@pytest.mark.parametrize("tokens_per_s", [-1000.0, 5e-324, 1e308])
def test_a_speed_that_a_host_makes_up_breaks_nothing(tokens_per_s: float, tmp_path: Path) -> None:
    told = status(tokens_per_s=tokens_per_s)
    assert all("nan" not in finding.text for finding in of_speed(1000.0, told))
    terms = terms_of(INVITE, description(round_seconds=None, round_tokens=60_000), told, tmp_path)
    assert "inf" not in of_traffic(terms, LINE, 1000.0).text


def test_a_time_that_a_host_makes_up_breaks_nothing(tmp_path: Path) -> None:
    assert terms_of(INVITE, description(), status((1, 0.0), (2, 5e-324)), tmp_path).traffic_bytes_per_hour


# ---- each finding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "level", "values"),
    [
        ("device", "note", {"kind": "cpu", "is_cuda_built": False}),
        ("device", "note", {"kind": "cpu"}),
        ("device", "note", {"kind": "cpu", "card": None}),
        ("device", "good", {"kind": "mps", "card": None}),
        ("precision", "note", {"precision": "fp32"}),
        ("precision", "good", {"precision": "fp16"}),
        ("memory", "note", {"main_free_bytes": 2 * GB}),
        ("memory", "bad", {"main_free_bytes": GB // 2}),
    ],
)
def test_what_a_computer_lacks_is_found(key: str, level: str, values: dict[str, Any]) -> None:
    (finding,) = (finding for finding in of_computer(replace(GOOD, **values)) if finding.key == key)
    assert finding.level == level and bool(finding.remedy) == (level != "good")


def test_a_full_disk_is_found(tmp_path: Path) -> None:
    assert [of_disk(free, "x").level for free in (GB // 2, 5 * GB, 50 * GB)] == ["bad", "note", "good"]
    terms = asked(tmp_path).terms
    free = (terms.download_bytes - 1, terms.download_bytes, terms.disk_bytes)
    assert [of_download(terms, size).level for size in free] == ["bad", "note", "good"]


def test_the_micro_batch_is_what_fits_and_what_does_not_fit_is_told() -> None:
    run = description()
    spec = run.card.spec
    large, small = (fit_of(spec, None, Room(64 * GB, size * GB)) for size in (60, 8))
    assert large.sequences == spec.inner.micro_batch and 1 <= small.sequences < large.sequences
    tight = fit_of(spec, None, Room(64 * GB, large.needed_bytes - 1))
    assert tight.recomputing and tight.sequences >= 1 and of_fit(tight).level == "note"
    none = fit_of(spec, None, Room(64 * GB, GB))
    assert none.sequences == 0 and of_fit(none).level == "note", "other programs may be closed"
    assert of_fit(replace(none, room=Room(3 * GB, GB), needed_bytes=4 * GB)).level == "note", "the estimate may be high"
    assert of_fit(replace(none, room=Room(2 * GB, GB), needed_bytes=4 * GB)).level == "bad"
    assert of_fit(large).level == "good"


def test_a_card_of_its_own_memory_needs_not_hold_all_copies_of_the_state() -> None:
    spec = description("full").card.spec
    shared, own = (fit_of(spec, None, Room(64 * GB, 60 * GB, is_own=is_own)) for is_own in (False, True))
    assert own.needed_bytes < shared.needed_bytes


@pytest.mark.parametrize(
    ("offset_s", "level"), [(0.5, "good"), (-30.0, "note"), (30.0, "note"), (9999.0, "bad"), (-9999.0, "bad")]
)
def test_a_wrong_clock_is_found(offset_s: float, level: str) -> None:
    found = {finding.key: finding for finding in of_line(replace(LINE, clock=clock(offset_s)), PLACE)}
    assert found["clock"].level == level
    assert ("ahead" in found["clock"].text) == (offset_s > 1)


def test_a_slow_line_is_found(tmp_path: Path) -> None:
    slow = replace(LINE, up_bytes_s=50_000.0)
    assert next(of_line(slow, PLACE)).level == "note"
    terms = replace(asked(tmp_path).terms, round_s=60.0)
    assert of_traffic(terms, LINE, None).level == "good"
    assert "sending takes" in of_traffic(terms, slow, None).text and of_traffic(terms, slow, None).level == "note"


@pytest.mark.parametrize(
    ("line", "place", "words_in"),
    [
        ({"reached": True}, {}, "others can reach this computer"),
        ({"reached": True}, {"knocked": False}, "behind a router"),  # something else answers there
        ({"reached": False}, {"knocked": False}, "forward port 4710 of the router"),
        ({"reached": False}, {"knocked": False, "is_fixed": False}, "mostly nothing"),
        ({"reached": False}, {"knocked": False, "own": PUBLIC}, "firewall"),
        ({"reached": False}, {"knocked": False, "own": "100.64.3.4"}, "shares one address"),
        ({"reached": None}, {"knocked": False}, "did not try"),
        ({"reached": None, "seen": "10.0.0.7"}, {"knocked": False}, "not on the Internet"),
        ({"reached": None, "seen": "2001:4860:4860:8888::/64"}, {"knocked": False}, "did not try"),
        ({"reached": None, "seen": "\x1b[2J"}, {"knocked": False}, "not on the Internet"),
    ],
)
def test_whether_others_can_reach_it_is_told_as_far_as_it_is_known(
    line: dict[str, Any], place: dict[str, Any], words_in: str
) -> None:
    seen = replace(LINE, **{"seen": PUBLIC} | line)
    *_, finding = of_line(seen, replace(PLACE, **place))
    assert words_in in f"{finding.text} {finding.remedy}"
    assert (finding.level == "good") == (not finding.remedy)


def test_an_own_address_says_what_it_can() -> None:
    assert [of_own_address(own).level for own in ("", "100.64.0.9", "192.168.1.5")] == ["bad", "note", "note"]
    assert own_address("127.0.0.1:9") == "127.0.0.1" and own_address("no such host:9") == ""


def test_watts_and_price_are_the_owners_and_what_is_not_known_is_not_made_up() -> None:
    assert [finding.key for finding in of_power(Power(None, False, None))] == ["power"]
    power, cost = of_power(Power(None, False, 0.5))
    assert power.level == "note" and "36.00 a month for each 100 W" in cost.text
    assert "as you say" in next(of_power(Power(90.0, False, None))).text


def test_nobody_is_there_to_share_with() -> None:
    *_, share = of_speed(1000.0, status())
    assert "all yours" in share.text
    assert [finding.key for finding in of_speed(1000.0, None)] == ["speed"]


def test_who_knocks_is_heard() -> None:
    import socket

    with Knocks("127.0.0.1:0") as knocks:
        with socket.create_connection(("127.0.0.1", knocks.port), timeout=5) as there:
            assert there.recv(1) == b"", "closed after it was counted"
        assert knocks.heard == 1


# ---- join ------------------------------------------------------------------------------------------------------------


def test_join_stops_before_the_download_where_it_cannot_work(tmp_path: Path) -> None:
    run = description()
    terms = terms_of(INVITE, run, None, tmp_path)
    QuickLook(Room(64 * GB, GB), tmp_path).check(run, replace(terms, download_bytes=0))
    QuickLook(None, tmp_path).check(run, replace(terms, download_bytes=0))
    with pytest.raises(InputError, match="needs about"):
        QuickLook(Room(GB // 8, GB // 8), tmp_path).check(run, replace(terms, download_bytes=0))
    with pytest.raises(InputError, match="would be downloaded"):
        QuickLook(Room(64 * GB, GB), tmp_path).check(run, replace(terms, download_bytes=10**18))


# ---- in Chinese ------------------------------------------------------------------------------------------------------


def test_it_speaks_chinese(tmp_path: Path) -> None:
    found = [*examine(tmp_path).values(), *examine(tmp_path, ask=CoordinatorOlder(OLDER), disk=(1, "/")).values()]
    found += of_computer(replace(GOOD, kind="cpu", main_free_bytes=1))
    for finding in found:
        for text in (finding.text, finding.remedy):
            check_chinese(re.sub(f"{CARD.name}|{NAMES}", "", words.told(text, "zh")))
