"""One Linux network namespace with one TUN device: a machine of its own as far as the network goes. `lab` opens them.

The namespace has no name and no file: the kernel takes it away when its last process has ended and its last descriptor
is closed, after kill -9 too. Nothing of the machine outside can be reached from inside: there is a loopback device and
`wan0`, a route to the lab's own addresses, and no default route. No tool is needed, neither `ip` nor `nsenter`.

    with Namespace("10.77.0.1") as here:
        here.call(lambda: socket.create_server(("10.77.0.1", 0)))  # a socket in there, used from here
        here.call(lambda: subprocess.Popen(["sleep", "1"]))  # a process in there
        os.read(here.tun, 65536)  # a packet that it sends
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

TUN = "/dev/net/tun"
NO_IPV6 = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
DEVICE = b"wan0"
PREFIX_MASK = "255.255.0.0"
QUEUE_PACKETS = 4000  # that wait in the device for the forwarder, should it be held up
CALL_S = 60.0
GONE_S = 10.0

# linux/sched.h, linux/if_tun.h, linux/sockios.h, linux/if.h
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8914, 0x8916, 0x891C, 0x8922, 0x8943
_IFF_UP, _IFF_RUNNING = 0x1, 0x40

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A new namespace whose `wan0` has this address; use as a context manager.

    Args:
        address: IPv4, inside the /16 that all hosts of a lab share.
        mtu: of `wan0`, bytes.
        congestion: TCP's congestion control in there, whatever this machine has outside; see `congestion_control`.

    Raises:
        OSError: the kernel does not allow it; `available` says why.
    """

    def __init__(self, address: str, *, mtu: int = 1400, congestion: str = "reno") -> None:
        self.address, self._congestion = address, congestion
        with ThreadPoolExecutor(1) as thread:  # a thread has its network namespace to itself
            self.file, self.tun = thread.submit(self._make, mtu).result(CALL_S)

    def _make(self, mtu: int) -> tuple[int, int]:
        _check(_libc.unshare(_CLONE_NEWNET))
        with contextlib.ExitStack() as stack:
            tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, tun)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE, _IFF_TUN | _IFF_NO_PI))
            if os.path.exists(NO_IPV6):
                Path(NO_IPV6).write_text("1")
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(self._congestion)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                _set_address(control, self.address)
                for request, number in ((_SIOCSIFMTU, mtu), (_SIOCSIFTXQLEN, QUEUE_PACKETS)):
                    fcntl.ioctl(control, request, struct.pack("16si20x", DEVICE, number))
                for device in (b"lo", DEVICE):
                    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", device, _IFF_UP | _IFF_RUNNING))
            file = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            stack.pop_all()
            return file, tun
        raise AssertionError("an ExitStack swallows nothing")

    @property
    def inode(self) -> int:
        """What /proc/<pid>/ns/net names for every process in here."""
        return os.fstat(self.file).st_ino

    def call(self, action: Callable[[], T]) -> T:
        """Do something in there, in a thread of its own: what it opens or starts stays. Raises what `action` does."""

        def inside() -> T:
            enter(self.file)
            return action()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(inside).result(CALL_S)

    def set_address(self, address: str) -> None:
        """Another one for `wan0` instead of the one it has; connections from that stay open, and are dead."""

        def inside() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                _set_address(control, address)

        self.call(inside)
        self.address = address

    def close(self) -> None:
        for descriptor in (self.file, self.tun):
            if descriptor >= 0:
                os.close(descriptor)
        self.file = self.tun = -1

    def close_tun(self) -> None:
        """Leave the device to the process that inherited it."""
        os.close(self.tun)
        self.tun = -1

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _set_address(control: socket.socket, address: str) -> None:
    for request, text in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, PREFIX_MASK)):
        fcntl.ioctl(control, request, struct.pack("16sHH4s8x", DEVICE, socket.AF_INET, 0, socket.inet_aton(text)))


def enter(file: int) -> None:
    """Move the calling thread into the namespace that this descriptor names; threads and processes it starts follow."""
    _check(_libc.setns(file, _CLONE_NEWNET))


def available() -> str:
    """Why namespaces and TUN devices cannot be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.path.exists(TUN):
        return f"there is no {TUN}"
    try:
        Namespace("10.77.0.1").close()
    except OSError as error:
        return f"network namespaces or TUN devices are forbidden here: {error}"
    return ""


def congestion_control() -> str:
    """What home computers have as far as this machine lets namespaces choose it: "cubic", or "reno".

    Where the machine's own default is another, `sysctl net.ipv4.tcp_allowed_congestion_control="reno cubic"` allows
    cubic.
    """
    allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
    return "cubic" if "cubic" in allowed else "reno"


def processes_in(inodes: Iterable[int]) -> list[int]:
    """The pids of all living processes in these namespaces."""
    wanted = {f"net:[{inode}]" for inode in inodes}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended, or is a zombie: that holds no namespace any more
                if os.readlink(entry / "ns" / "net") in wanted:
                    found.append(int(entry.name))
    return found


def kill_all_in(inodes: Iterable[int]) -> None:
    """SIGKILL everything in these namespaces, and wait until it is gone.

    Raises:
        TimeoutError: something did not end.
    """
    inodes = set(inodes)
    deadline = time.monotonic() + GONE_S
    while found := processes_in(inodes):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still there {GONE_S:.0f} s after SIGKILL: processes {found}")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
