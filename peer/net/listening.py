"""Where a node is to listen, and whether it can: looked at before anything else is done for it.

>>> split_host_port("127.0.0.1:4701"), split_host_port("[::1]:0")
(('127.0.0.1', 4701), ('::1', 0))
"""

from __future__ import annotations

import ipaddress
import re
import socket

from protocol.errors import InputError, NetworkError

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?"
)


def check_listen(listen: str, announce: str | None = None) -> None:
    """See whether a node can be started so.

    Args:
        listen: "host:port"; port 0 takes a free one.
        announce: a host that others reach it by.

    Raises:
        InputError: what is given is no address, or `announce` no name of a host.
        NetworkError: the port is taken.
    """
    host, port = split_host_port(listen)
    if announce is not None:
        if not port:
            raise InputError(
                "--announce needs a fixed port", "give one with --listen, such as 0.0.0.0:4710, and forward it"
            )
        if not _is_host(announce):
            raise InputError(
                f"--announce {announce[:80]!r}: neither an address nor the name of a host", "give it without a port"
            )
    check_free(host, port)


def split_host_port(text: str) -> tuple[str, int]:
    """("127.0.0.1", 4701) from "127.0.0.1:4701". Raises: InputError."""
    host, colon, port = text.rpartition(":")
    try:
        if not colon or not port.isascii() or not 0 <= int(port) < 65536:
            raise ValueError
        return str(ipaddress.ip_address(host.strip("[]"))), int(port)
    except ValueError as error:
        raise InputError(f"expected an address like 0.0.0.0:4701, got {text[:200]!r}") from error


def check_free(host: str, port: int) -> None:
    """See whether a port is free. p2pd would share a taken one (SO_REUSEPORT), and get half of its connections.

    Raises:
        NetworkError: it is taken, or this computer has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = "is another peer or host running? stop it, or listen on another port"
            raise NetworkError(f"cannot listen on {host}:{port}: {error.strerror}", hint) from error


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return _HOST_NAME.fullmatch(text) is not None
    return True
