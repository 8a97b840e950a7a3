"""Every text in the source that a person may read, as a template with `{}` for its values; for `test_words`.

A text is a string or f-string with words in it: what errors say and advise, what checks found, why somebody was left
out, what the screens print, help. Not texts: docstrings, what is logged, annotations, asserts, and what only a mistake
of ours brings up.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from lab import REPOSITORY
from peer.service.plan import START

NO_SCREENS = {
    "card_fonts.py",
    "model_card.py",
    "plot.py",
    "rows.py",
    "unit.py",
    "words.py",
}  # names of fonts, files that are written, SQL, and the catalogue's own module
OURS = {
    "RuntimeError",
    "TypeError",
    "AssertionError",
    "KeyError",
    "NotImplementedError",
}  # mistakes of ours, not of people
NOT_SHOWN = {
    START[-1],
    "%(asctime)s %(levelname)s %(name)s: %(message)s",
    "%(asctime)s %(message)s",
    "Failed to connect to bus",
    "(os error",
    "as a standalone, add `is_decoder=True",
    ".is_gradient_checkpointing. is deprecated",
    "The following (rank|alpha)_pattern keys",
    'cat >/dev/null; kill "$1" 2>/dev/null; sleep 1; kill -9 "$1" 2>/dev/null; rm -f "$2" "$3"',
    "error: {}\nhint: {}",  # of what is started as python -m
    "folder to write",
    "python -m peer.net.rendezvous",
    "python -m peer.training.glassllm",
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "causal LM",
    "bold red",
    "bold green",
    "bold yellow",
    "range requests",
    "SELECT COUNT(*) > 1 FROM leaves",
    "Value error,",
    "{}, {} threads",
    "value = {}",
    "{} GB",
    "{} | recomputing",
}
FORMATS = ("protocol/", "coordinator/run_config")
MOST_FORMS = 16  # of one text with conditions in it


def texts() -> dict[str, str]:
    """Template -> where it stands first, as file:line."""
    found: dict[str, str] = {}
    for path in sorted(modules()):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(REPOSITORY).as_posix()
        hidden = set(map(id, _hidden(tree, name)))
        for line, text in [*_strings(tree, hidden), *_help(tree)]:
            if _is_prose(text) and text.strip() not in NOT_SHOWN:
                found.setdefault(text.strip(), f"{name}:{line}")
    return found


def modules() -> Iterator[Path]:
    yield REPOSITORY / "potluck.py"
    for folder in ("protocol", "peer", "coordinator", "commands"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            if "_pb2" not in path.name and path.name not in NO_SCREENS:
                yield path


def _is_prose(text: str) -> bool:
    """At least two words, or one beside a value."""
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w*\}", " ", text))
    return bool(words) and " " in text.strip() and (len(words) > 1 or "{" in text)


def _hidden(tree: ast.Module, name: str) -> Iterator[ast.AST]:
    """All nodes within what is no text."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant()):
                yield from ast.walk(node)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))):
                yield from ast.walk(node)
            case (
                ast.Call(func=ast.Name(id="getattr" | "Path" | "TypeVar"))
                | ast.Call(func=ast.Attribute(value=ast.Name(id="re")))
            ):
                yield from ast.walk(node)
            case ast.Assert(msg=ast.AST() as message):
                yield from ast.walk(message)
            case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=ast.AST() as annotation):
                if not any(isinstance(inner, ast.Call) for inner in ast.walk(annotation)):  # options' help stands there
                    yield from ast.walk(annotation)
            case ast.Raise(exc=ast.Call(func=ast.Name(id=kind))) if kind in OURS or (
                kind == "ValueError" and not name.startswith(FORMATS)  # pydantic tells those of the formats
            ):
                yield from ast.walk(node)


def _strings(node: ast.AST, hidden: set[int]) -> Iterator[tuple[int, str]]:
    if id(node) in hidden:
        return
    if isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp) and (forms := _forms(node)) != ["{}"]:
        yield from ((node.lineno, form) for form in forms)  # type: ignore[attr-defined]
        node_parts = _values(node)
    else:
        node_parts = ast.iter_child_nodes(node)
    for part in node_parts:
        yield from _strings(part, hidden)


def _forms(node: ast.AST) -> list[str]:
    """What a string expression can come to; `{}` is what is not known."""
    match node:
        case ast.Constant(value=str() as text):
            return [text.replace("{}", "{{}}")]
        case ast.JoinedStr(values=parts):
            return ["".join(p.value if isinstance(p, ast.Constant) else "{}" for p in parts)]  # type: ignore[misc]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return [before + after for before in _forms(left) for after in _forms(right)][:MOST_FORMS]
        case ast.IfExp(body=body, orelse=otherwise):
            return [*_forms(body), *_forms(otherwise)]
    return ["{}"]


def _values(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions within a text that are values of it: they may hold texts of their own."""
    match node:
        case ast.JoinedStr(values=parts):
            yield from (part.value for part in parts if isinstance(part, ast.FormattedValue))
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            yield from _values(left)
            yield from _values(right)
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            yield test
            yield from _values(body)
            yield from _values(otherwise)
        case ast.Constant():
            return
        case _:
            yield node


def _help(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The paragraphs of what `--help` says of each command."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(arg.arg == "lang" for arg in node.args.args):
            for paragraph in inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n"):
                yield node.lineno, " ".join(paragraph.split())
