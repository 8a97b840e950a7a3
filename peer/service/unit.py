"""The text of a unit of systemd that runs a peer (systemd.service(5), systemd.exec(5), systemd.syntax(7)).

`potluck join` ends with 1 where the answer is no, and with `LEFT` where its owner made it leave: it is not started
again then. After any other failure it is, after longer and longer pauses where systemd knows how, else every two
minutes. Systemd's journal keeps what it says, and rotates it.

What a unit of a user can have of hardening is what needs no privilege: nothing of the file system is hidden from it.

>>> word("/a b/50%"), word("$x"), word('say "hi"'), word("plain")
('"/a b/50%%"', '"$$x"', '"say \\\\"hi\\\\""', 'plain')
"""

from __future__ import annotations

import re

from peer.service.plan import LEFT, NICE, REFUSED, STOP_S, ServicePlan

STEPS_SINCE = 254  # the version of systemd that has RestartSteps
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_HARDENED = """\
UMask=0077
LimitCORE=0
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
"""


def unit_text(plan: ServicePlan, version: int) -> str:
    """The unit file of a service."""
    arguments = [word(text) for text in (*plan.program[1:], "join", *plan.join)]
    command = " ".join([word(plan.program[0], variables=False), *arguments])
    environment = "".join(
        f"Environment={word(f'{name}={value}', variables=False)}\n" for name, value in plan.environment.items()
    )
    back_off = "RestartSec=10s\nRestartSteps=7\nRestartMaxDelaySec=15min\n"
    return f"""\
# Written by `potluck service install`; `potluck service uninstall` removes it.
[Unit]
Description=Potluck: donates this computer's time to run {plan.invite.run[:16]}
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
WorkingDirectory={_specifiers(str(plan.home))}
{environment}Restart=on-failure
{back_off if version >= STEPS_SINCE else "RestartSec=2min" + chr(10)}\
RestartPreventExitStatus={REFUSED}
SuccessExitStatus={" ".join(map(str, LEFT))}
KillSignal=SIGINT
KillMode=mixed
TimeoutStopSec={STOP_S}s
Nice={NICE}
CPUSchedulingPolicy=batch
IOSchedulingPriority=7
OOMScoreAdjust=500
{_HARDENED}
[Install]
WantedBy=default.target
"""


def word(text: str, *, variables: bool = True) -> str:
    """One word of a command line in a unit (systemd.service(5), systemd.syntax(7)).

    Args:
        variables: `$` begins one there; not in the path of the program, nor in `Environment=`.
    """
    if _PLAIN.fullmatch(text):
        return text
    quoted = _specifiers(text.replace("\\", "\\\\").replace('"', '\\"'))
    return '"' + (quoted.replace("$", "$$") if variables else quoted) + '"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")
