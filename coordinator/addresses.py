"""The address that goes into the invite. `host` calls it."""

from __future__ import annotations

import logging
import socket

from protocol.run_spec import Host

logger = logging.getLogger(__name__)


def host_of(address: str | None) -> str | None:
    """The name in `name` or `name:port`.

    >>> host_of("example.org:4700"), host_of("2001:db8::1"), host_of(None)
    ('example.org', '2001:db8::1', None)
    """
    if address is None or address.count(":") != 1:
        return address
    return address.partition(":")[0]


def public_address(host: Host, port: int) -> str:
    """Where volunteers reach the service: what the host said, or this machine's own address.

    Args:
        host: `[host]` of run.toml.
        port: that the service listens on.

    >>> public_address(Host(public_address="example.org"), 4700), public_address(Host(listen="[::1]:0"), 4700)
    ('example.org:4700', '[::1]:4700')
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
