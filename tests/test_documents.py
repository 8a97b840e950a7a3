"""The pages for people: what they name exists, their commands are those of the program, and a page is a page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from potluck import app

REPOSITORY = Path(__file__).resolve().parents[1]
HISTORY = {"CHANGELOG.md", "docs/log.md"}  # what they name may be gone
PAGE_LINES = {"README.md": 120, "README.zh-CN.md": 120, "ARCHITECTURE.md": 140, "docs/benchmarks.md": 140}
WIDTH = 120
FOLDERS = ("commands", "protocol", "peer", "coordinator", "lab", "tests", "scripts", "docs", "examples")


def pages() -> list[str]:
    """All pages of ours, by their path; what the vectors hold was signed as it is."""
    top = list(REPOSITORY.glob("*.md"))
    below = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.md")]
    names = sorted(path.relative_to(REPOSITORY).as_posix() for path in top + below)
    return [name for name in names if not re.match(r"tests/vectors/(checkpoints|oms)/", name)]


PAGES = pages()
PRESENT = [name for name in PAGES if name not in HISTORY]


@cache
def file_names() -> set[str]:
    return {path.name for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*")}


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def spans(text: str) -> Iterator[str]:
    """What stands between backticks, and the lines of fenced blocks."""
    for index, piece in enumerate(text.split("```")):
        if index % 2:
            yield from piece.splitlines()[1:]
        else:
            yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", piece))


def commands(name: str, program: str) -> list[list[str]]:
    """The command lines that a page shows, split into words; `program` is a pattern of how they begin."""
    return [shlex.split(line, comments=True) for line in spans(read(name)) if re.match(program, line)]


@pytest.mark.parametrize("name", PAGES)
def test_prose_ends_at_120_characters(name: str) -> None:
    lines = enumerate(read(name).splitlines(), start=1)
    tables_and_links = re.compile(r"\s*\||[-*\s]*\S+$")
    assert [f"{name}:{at}" for at, line in lines if len(line) > WIDTH and not tables_and_links.match(line)] == []


@pytest.mark.parametrize("name", sorted(PAGE_LINES))
def test_a_page_is_a_page(name: str) -> None:
    assert len(read(name).splitlines()) <= PAGE_LINES[name]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", read(name))
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [link for link in local if link and not ((REPOSITORY / name).parent / link).exists()] == []


@pytest.mark.parametrize("name", PRESENT)
def test_paths_that_a_page_names_exist(name: str) -> None:
    lost = []
    for span in spans(read(name)):
        for word in re.findall(r"[\w./*-]+", span):
            path = word.removeprefix("./").rstrip("./")
            if re.fullmatch(r"(peer|coordinator)(\.[a-z_]+){2,}(\.[A-Z]\w*)?", path):  # a module, and what is in it
                path = re.sub(r"\.[A-Z]\w*$", "", path).replace(".", "/") + "*"
            if path.split("/")[0] in FOLDERS and "/" in path:
                lost += [] if list(REPOSITORY.glob(path)) else [path]
            elif re.fullmatch(r"\w+\.(py|proto)", path):
                lost += [] if path in file_names() or (REPOSITORY / path).exists() else [path]
    assert lost == []


def options_of(command: Any) -> set[str]:
    """As `--help` lists them."""
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


@pytest.mark.parametrize("name", PRESENT)
def test_commands_of_potluck_are_as_help_says(name: str) -> None:
    root: Any = typer.main.get_command(app)
    for line in commands(name, "potluck "):
        command, words = root, line[1:]
        while hasattr(command, "commands") and words:
            assert words[0] in command.commands or words[0].startswith("-"), " ".join(line)
            command, words = command.commands.get(words[0], command), words[1:]
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert given <= options_of(command), " ".join(line)


def test_both_readmes_show_the_same_commands_and_tests() -> None:
    """And lead to the same pages; what is said about them differs."""

    def shown(name: str) -> tuple[list[list[str]], list[str], set[str]]:
        lines = [words for line in spans(read(name)) if (words := shlex.split(line, comments=True))]
        links = {link for link in re.findall(r"\]\(([^)\s]+)\)", read(name)) if not link.startswith("README")}
        typed = [words for words in lines if not re.fullmatch(r"\w+\.py", words[0])]
        return sorted(typed), sorted(words[0] for words in lines if words not in typed), links

    english, chinese = shown("README.md"), shown("README.zh-CN.md")
    assert all(english) and chinese == english
    assert "](README.zh-CN.md)" in read("README.md") and "](README.md)" in read("README.zh-CN.md")


@pytest.mark.parametrize("name", PRESENT)
def test_scripts_and_their_options_exist(name: str) -> None:
    for line in commands(name, r"(\./)?scripts/\w"):
        script = line[0].removeprefix("./").removeprefix("scripts/")
        table = line[1] if script == "bench" and len(line) > 1 and not line[1].startswith("-") else script
        sources = [path for path in (REPOSITORY / "scripts").rglob("*.py") if path.stem in (table, f"bench_{table}")]
        assert (REPOSITORY / "scripts" / script).is_file(), " ".join(line)
        assert sources or script == table, f"no table {table}"
        options = {word for word in line if word.startswith("--")} - {"--help"}
        assert all(any(option in source.read_text() for source in sources) for option in options), " ".join(line)
