"""A peer whose clock is wrong is told so, in both directions, and waits where it must until the clock is set."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.processes import CARD_TOKENS_PER_S, Community, LabProcess
from lab.small_community import tiny_run
from lab.warm_start import WarmStart
from peer.link.clock import Clock
from peer.screen.messages import text

# what a process takes for the time is off by what a file says, which is read again several times a second
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);

static time_t offset(void) {
    static struct timespec read_at;
    static double found;
    struct timespec now;
    real(CLOCK_MONOTONIC, &now);
    if (now.tv_sec != read_at.tv_sec || now.tv_nsec - read_at.tv_nsec > 200000000) {
        const char *path = getenv("POTLUCK_TEST_CLOCK");
        FILE *file = path == NULL ? NULL : fopen(path, "r");
        if (file != NULL) {
            if (fscanf(file, "%lf", &found) != 1) found = 0;
            fclose(file);
        }
        read_at = now;
    }
    return (time_t)found;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (real == NULL) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) time->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that is loaded before libc."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler, or not Linux: no other clock can be had")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "clock.c").write_text(SHIM)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(folder / "clock.so"), str(folder / "clock.c"), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return folder / "clock.so"


@pytest.fixture(scope="module")
def shifted(shim: Path) -> Iterator[WarmStart]:
    """Starts processes whose clock is off."""
    with WarmStart(environment={"LD_PRELOAD": str(shim)}) as started:
        yield started


@pytest.fixture(scope="module")
def community(
    tmp_path_factory: pytest.TempPathFactory, glass_dir: Path, plays: Path, starter: WarmStart
) -> Iterator[Community]:
    folder = tmp_path_factory.mktemp("clock")
    config = tiny_run(folder, glass_dir, plays, "clock", round_seconds=1.0)
    with Community(folder, config, starter=starter, tokens_per_s=CARD_TOKENS_PER_S) as opened:
        opened.host()
        opened.peer("bob").wait_round(1)
        yield opened


def with_clock(community: Community, shifted: WarmStart, name: str, offset_s: float) -> tuple[LabProcess, Path]:
    """A peer whose clock is off by what the returned file says."""
    clock = community.folder / f"{name}.clock"
    clock.write_text(str(offset_s))
    environment = community.environment(name) | {"POTLUCK_TEST_CLOCK": str(clock)}
    arguments = ["join", community.invite, "--yes", "--json", "--home", str(community.home(name)), "--device", "cpu"]
    arguments += ["--threads", "1", "--listen", "127.0.0.1:0"]
    part = LabProcess(name, arguments, community.folder / f"{name}.log", environment, shifted)
    community.parts.append(part)
    return part, clock


@pytest.mark.swarm
@pytest.mark.parametrize(
    ("offset_s", "side"),
    [
        (312.0, "ahead"),
        pytest.param(-312.0, "behind", marks=pytest.mark.slow),
        pytest.param(1e5, "ahead", marks=pytest.mark.slow),
        (-1e7, "behind"),
    ],
)
def test_a_clock_far_off_is_told_and_the_peer_goes_on_when_it_is_set(
    community: Community, shifted: WarmStart, offset_s: float, side: str
) -> None:
    peer, clock = with_clock(community, shifted, f"far{offset_s:.0f}", offset_s)
    told = peer.wait_for("waiting", key=f"clock-{side}")["reason"]
    assert (
        {312.0: "5 min 1", 1e5: "1 d 3 h", 1e7: "114 d"}[abs(offset_s)] in told
        and f" {side} " in told
        and "set" in told
    )
    assert not peer.find("step", step="fetching")
    clock.write_text("0")
    peer.wait_for("committed", took_part=True)
    assert peer.stop() == 0
    assert "Traceback" not in peer.said


@pytest.mark.swarm
def test_a_clock_a_little_off_is_told_and_does_no_harm(community: Community, shifted: WarmStart) -> None:
    peer, clock = with_clock(community, shifted, "near", 20.0)
    peer.wait_for("waiting", key="clock-ahead")
    peer.wait_for("committed", took_part=True)
    clock.write_text("-20")
    peer.wait_for("waiting", key="clock-behind")
    peer.wait_round(peer.round + 2)
    clock.write_text("0")
    peer.wait_for("waiting", key="clock-right")
    assert peer.stop() == 0


def test_the_offset_is_measured_without_the_way_there_and_back() -> None:
    clock = Clock()
    assert not clock.is_wrong
    clock.heard(sent=100.0, received=104.0, theirs=102.0)
    assert clock.offset_s == 0
    clock.heard(sent=100.0, received=101.0, theirs=103.5)
    assert clock.offset_s == -3.0 and clock.is_wrong
    for sent, received, theirs in ((100.0, 200.0, 5.0), (100.0, 99.0, 5.0), (1.0, 1.0, float("nan")), (1.0, 1.0, 0.0)):
        clock.heard(sent=sent, received=received, theirs=theirs)
        assert clock.offset_s == -3.0, "such an answer says nothing"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_both_languages_name_the_offset_and_the_way_to_set_it(language: str) -> None:
    told = {text(key, language, offset="5 min 12 s", how="ntp") for key in ("clock-ahead", "clock-behind")}
    assert len(told) == 2 and all("5 min 12 s" in line and "ntp" in line for line in told)
