"""An invite is found in what people paste and in the files they keep it in; where there is none, one line says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.errors import FormatError, InputError
from protocol.invite import Invite
from protocol.pasted import MAX_FILE_BYTES, contents, holds_invite, read_invite

INVITE = Invite(addresses=("127.0.0.1:4700",), run="a" * 64, tls="b" * 64, root="c" * 64, code="x?~~>>")
NEWER = INVITE.model_copy(update={"version": 2, "code": None})
OTHER = INVITE.model_copy(update={"code": "another"})
LINE = str(INVITE)


def wrappings(line: str) -> dict[str, str]:
    """What becomes of a line on its way."""
    return {
        "quoted": f'"{line}"',
        "Chinese quotes": f"邀请：“{line}”，请加入。",
        "sentence": f"Come and join us: {line}. It is fun!",
        "command": f"$ potluck join '{line}' --yes",
        "markdown link": f"[join]({line})",
        "markdown code": f"```\n{line}\n```",
        "markdown escapes": f"**{line}**".replace("_", "\\_"),
        "mail address": f"<{line}>,",
        "byte order mark": f"\ufeff{line}",
        "zero width": "\u200b".join(line),
        "soft hyphens": f"{line[:40]}\u00ad{line[40:]}",
        "direction marks": f"\u202a{line}\u202c",
        "no-break spaces": f"\u00a0{line[:9]}\u00a0{line[9:]}",
        "mail's lines": "\r\n".join(line[at : at + 76] for at in range(0, len(line), 76)),
        "break in the prefix": f"{line[:4]}\n{line[4:]}",
        "quoted-printable": "=\r\n".join(line[at : at + 75] for at in range(0, len(line), 75)),
        "answer": "\n".join(f"> {line[at : at + 60]}" for at in range(0, len(line), 60)),
        "answer to an answer": "On Monday X wrote:\n"
        + "\n".join(f"> > {line[at : at + 60]}" for at in range(0, len(line), 60)),
        "shell's continued line": f"{line[:50]}\\\n{line[50:]}",
        "hyphens": f"{line[:50]}-\n{line[50:]}",
        "page": f"<p>{line[:50]}<br/>{line[50:]}</p>",
        "twice": f"{line}\n\n{line}",
        "glued twice": line + line,
        "capital": line.replace("potluck1", "Potluck1"),
        "what the host shows": f"This run is by invite:\n\n{line}\n\n"
        f"to join: potluck join {line[:24]}…\nfolder:  runs/x\n",
        "one that was cut, and a whole one": f"{line[:70]}\n{line}",
        "check digits and more": f"{line}cafe",
    }


@pytest.mark.parametrize("name", wrappings(LINE))
@pytest.mark.parametrize("invite", [INVITE, NEWER], ids=["version 1", "version 2"])
def test_an_invite_is_found_in_what_was_pasted(name: str, invite: Invite, tmp_path: Path) -> None:
    wrapped = wrappings(str(invite))[name]
    assert read_invite(wrapped) == invite
    (tmp_path / "mail").write_text(wrapped, encoding="utf-8")
    assert read_invite(str(tmp_path / "mail")) == invite


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gbk", "latin-1", "cp1252"]
)
@pytest.mark.parametrize("name", ["an invite.txt", "邀请.txt", "it's.txt", "potluck1.txt"])
def test_a_file_is_found_however_its_name_is_typed_and_read_however_it_was_saved(
    encoding: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = "invite" if encoding in ("latin-1", "cp1252") else "邀请"
    (tmp_path / name).write_bytes(f"{words}: {LINE}\r\n".encode(encoding))
    path = str(tmp_path / name)
    typed = [
        name,
        path,
        f'"{path}"',
        f"'{path}' ",
        f"~/{name}",
        path.replace(" ", "\\ "),
        f"file://{path}",
        f"\ufeff{path}\n",
    ]
    for given in typed:
        assert read_invite(given) == INVITE, given


NOT_ONE = {
    "nothing": "",
    "a word": "hello",
    "only the beginning": "potluck1.",
    "cut": LINE[:-3],
    "cut in the middle, with words after": f"{LINE[:60]} and so on. Bye",
    "a digit changed": LINE[:-1] + ("0" if LINE[-1] != "0" else "1"),
    "long": "x" * 5000,
    "very long": "potluck1." * 50_000,
    "zero byte": "a\0b",
    "half a surrogate": "\ud800",
    "nobody's home": "~no-such-user/invite",
    "only marks": ">" * 5000 + "\\" * 5000,
    "white space": " \n\t ",
    "no such file": "/no/such/invite.txt",
    "long name": "/" + "x" * 300,
}


@pytest.mark.parametrize("name", NOT_ONE)
def test_what_holds_no_whole_invite_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(FormatError, match="invite") as refused:
        read_invite(NOT_ONE[name])
    assert "copy the whole line" in refused.value.hint
    assert len(refused.value.message) < 200 and "\n" not in refused.value.message


def test_two_different_invites_are_not_chosen_from() -> None:
    with pytest.raises(FormatError, match="2 different invites") as refused:
        read_invite(f"{LINE}\n{OTHER}")
    assert "the run you want to join" in refused.value.hint


def test_what_is_no_file_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder, not an invite"):
        read_invite(str(tmp_path))
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="not a file that can hold an invite"):
            read_invite(device)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="cannot be read"):
        read_invite(str(tmp_path / "loop"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a file"):
        read_invite(str(tmp_path / "pipe"))


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    path.write_text(LINE)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="secret: cannot be read: Permission denied"):
        read_invite(str(path))


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF" + bytes(range(256)) * 40, b"\xff\xfe", b"\xff", b"\0" * 999, os.urandom(5000)], ids=len
)
def test_a_file_without_an_invite_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(FormatError, match="file: not an invite"):
        read_invite(str(tmp_path / "file"))


def test_of_a_huge_file_only_the_beginning_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.write(b" " * 100 + LINE.encode())
        file.truncate(1 << 40)
    assert len(contents(str(tmp_path / "huge")) or b"") == MAX_FILE_BYTES
    assert read_invite(str(tmp_path / "huge")) == INVITE


def test_what_looks_like_an_invite_is_told_from_what_does_not() -> None:
    assert holds_invite(f"x {LINE}".encode("utf-16")) and holds_invite(b"potluck1.eyJ")
    assert not holds_invite(b"potluck/tiny/0123\n12\nabc\n")
