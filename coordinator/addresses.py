"""Where a host listens, looked at before anything is built, and the address that goes into the invite; for `host`."""

from __future__ import annotations

import ipaddress
import logging
import socket

from coordinator.run_config import HostConfig
from protocol.errors import InputError

logger = logging.getLogger(__name__)


def host_of(address: str | None) -> str | None:
    """The name in `name` or `name:port`.

    >>> host_of("example.org:4700"), host_of("2001:db8::1"), host_of(None)
    ('example.org', '2001:db8::1', None)
    """
    if address is None or address.count(":") != 1:
        return address
    return address.partition(":")[0]


def check_addresses(host: HostConfig) -> None:
    """Check that the service and the rendezvous can listen where run.toml says.

    Raises:
        InputError: not an address with a port, not of this machine, or taken.
    """
    ports = [
        _check_listening("host.listen", host.listen),
        _check_listening("host.swarm_listen", host.swarm_listen, numbers=True),  # libp2p looks up no names to listen on
    ]
    if ports[0] and ports[0] == ports[1]:
        raise InputError(
            f"host.listen and host.swarm_listen have the same port, {ports[0]}", "give each a port of its own"
        )
    public = host.public_address
    if public is None:
        return
    name, port = public, None
    if public.count(":") == 1:
        name, _, text = public.partition(":")
        port = _port(text)
    if not name or "/" in name or name != "".join(name.split()) or (public.count(":") == 1 and not port):
        raise InputError(
            f"host.public_address: expected a name or an address, with or without a port, got {public!r}",
            "write it like example.org, 203.0.113.7:4700 or 2001:db8::1",
        )
    if ports[1] == 0:
        raise InputError(
            "host.public_address goes with a fixed host.swarm_listen, got port 0",
            "give a port that reaches this machine from outside, such as 0.0.0.0:4701",
        )


def _check_listening(key: str, text: str, numbers: bool = False) -> int:
    """The port of an address on which this machine can listen now."""
    name, colon, digits = text.rpartition(":")
    port = _port(digits)
    name = name.strip("[]")
    if not colon or not name or port is None or (numbers and not _is_numeric(name)):
        raise InputError(
            f"{key}: expected an address with a port from 0 to 65535, got {text!r}",
            "write it like 0.0.0.0:4700, the address in numbers; port 0 takes a free one",
        )
    hint = f"is another host running, or is this the address of another machine? choose another {key}"
    try:
        family, kind, _, _, where = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise InputError(f"{key}: cannot listen on {text}: {reason}", hint) from error
    return port


def _is_numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _port(digits: str) -> int | None:
    """0 to 65535, or None."""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) < 65536 else None


def public_address(host: HostConfig, port: int) -> str:
    """Where volunteers reach the service: what the host said, or this machine's own address.

    Args:
        host: `[host]` of run.toml.
        port: that the service listens on.

    >>> public_address(HostConfig(public_address="example.org"), 4700)
    'example.org:4700'
    >>> public_address(HostConfig(listen="[::1]:0"), 4700)
    '[::1]:4700'
    """
    public = host.public_address
    if public is not None:
        if public.count(":") == 1:
            return public
        return f"[{public}]:{port}" if ":" in public else f"{public}:{port}"
    name = host.listen.rpartition(":")[0].strip("[]")
    if name not in ("", "0.0.0.0", "::"):
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    found = _own_address()
    logger.warning("the invite names %s; set host.public_address if volunteers reach this machine elsewhere", found)
    return f"{found}:{port}"


def _own_address() -> str:
    """This machine's address on its way out; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        name: str = probe.getsockname()[0]
        return name
