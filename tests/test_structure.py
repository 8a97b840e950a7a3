"""The limits of the house: how long a file and a function may be, how wide a constructor, and what tests leave alone.

What still breaks one stands in KNOWN, by file. An entry that has come true fails as well, so the list only shrinks.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = ("protocol", "peer", "coordinator", "commands", "potluck.py")
TESTS = ("tests", "lab")
FILE_LINES, FUNCTION_LINES, PARAMETERS = 350, 60, 8
SETTERS = {"setattr", "delattr", "setitem", "delitem", "object", "patch"}  # of monkeypatch; `object`: mock.patch.object

KNOWN: dict[str, set[str]] = {}


class Breach(NamedTuple):
    what: str  # as KNOWN has it
    line: int
    why: str


# ---- the product ----------------------------------------------------------------------------------------------------


def test_files_functions_and_constructors_keep_to_their_size() -> None:
    check({name: list(oversized(source)) for name, source in sources((*PRODUCT, "scripts"))})


def oversized(source: str) -> Iterator[Breach]:
    """What of a module is longer or wider than it may be."""
    lines = len(source.splitlines())
    if lines > FILE_LINES:
        yield Breach("file", 1, f"{lines} lines, at most {FILE_LINES}")
    for scope in ast.walk(ast.parse(source)):
        for node in ast.iter_child_nodes(scope):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            name = f"{scope.name}.{node.name}" if isinstance(scope, ast.ClassDef) else node.name
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield Breach(name, node.lineno, f"{name} has {length} lines, at most {FUNCTION_LINES}")
            width = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
            width += bool(node.args.vararg) + bool(node.args.kwarg)
            if node.name == "__init__" and width > PARAMETERS:
                yield Breach(name, node.lineno, f"{name} has {width} parameters, at most {PARAMETERS}")


def test_no_two_public_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for name, source in sources(PRODUCT):
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not is_private(node.name):
                found.setdefault(node.name, []).append(name)
    assert {name: where for name, where in found.items() if len(where) > 1} == {}


def test_every_package_of_the_product_is_installed() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    there = {str(Path(name).parent).replace("/", ".") for name, _ in sources(PRODUCT) if "/" in name}
    assert sorted(told) == sorted(there)


# ---- the tests ------------------------------------------------------------------------------------------------------


def test_tests_keep_to_their_size_and_set_no_private_member_of_the_product() -> None:
    private = {name for _, source in sources(PRODUCT) for name in private_names(ast.parse(source))}
    check({name: [*oversized(source), *intrusions(source, private)] for name, source in sources(TESTS)})


def private_names(tree: ast.Module) -> Iterator[str]:
    """What a module of the product keeps to itself: its functions, classes, constants and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
        else:
            continue
        if is_private(name):
            yield name


def intrusions(source: str, private: set[str]) -> Iterator[Breach]:
    """Where a test sets, replaces, deletes or overrides one of these names; its own classes may have such names."""
    tree = ast.parse(source)
    theirs = set(imported_from_the_product(tree))
    for node in ast.walk(tree):
        for what in assigned(node) | patched(node):
            if what.rpartition(".")[2] in private:
                yield Breach(what, node.lineno, f"sets {what}")  # type: ignore[attr-defined]
        if isinstance(node, ast.ClassDef) and theirs.intersection(map(first_name, node.bases)):
            for name, line in members(node):
                if name in private:
                    yield Breach(f"{node.name}.{name}", line, f"overrides {node.name}.{name}")


def assigned(node: ast.AST) -> set[str]:
    """The private attributes, also of modules, that a statement assigns or deletes, wholly or an item of them."""
    found: set[str] = set()
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    while targets:
        target = targets.pop()
        if isinstance(target, ast.Tuple | ast.List):
            targets += target.elts
        elif isinstance(target, ast.Subscript | ast.Starred):
            targets.append(target.value)
        elif isinstance(target, ast.Attribute) and is_private(target.attr) and not is_own(target.value):
            found.add(ast.unparse(target))
    return found


def patched(node: ast.AST) -> set[str]:
    """The private names that a call of monkeypatch, of mock.patch or of the builtins replaces."""
    if not isinstance(node, ast.Call):
        return set()
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called not in SETTERS or not node.args or is_own(node.args[0]):
        return set()
    if called in ("setitem", "delitem"):
        return {ast.unparse(node.args[0])} if isinstance(node.args[0], ast.Attribute) else set()
    texts = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    owner = "" if isinstance(node.args[0], ast.Constant) else ast.unparse(node.args[0]) + "."
    return {owner + text for text in texts[:1] if is_private(text.rpartition(".")[2])}


def imported_from_the_product(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in module_names():
            yield from (alias.asname or alias.name for alias in node.names)


def members(of: ast.ClassDef) -> Iterator[tuple[str, int]]:
    """Methods of a class, and the attributes that they set in it."""
    for node in ast.walk(of):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr, node.lineno


def first_name(node: ast.expr) -> str:
    return ast.unparse(node).partition(".")[0].partition("[")[0]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


# ---- both -----------------------------------------------------------------------------------------------------------


def sources(where: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in where:
        paths = [ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py"))
        for path in paths:
            if "_pb2" not in path.name:
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def module_names() -> set[str]:
    return {name.removesuffix(".py") for name in PRODUCT}


def check(found: dict[str, list[Breach]]) -> None:
    """Compare with what is known. Raises: AssertionError: a new breach, or an entry of KNOWN that is none any more."""
    new = [
        f"{name}:{breach.line}: {breach.why}"
        for name, breaches in found.items()
        for breach in breaches
        if breach.what not in KNOWN.get(name, ())
    ]
    healed = [
        f"{name}: {what}"
        for name, known in KNOWN.items()
        if name in found or not (ROOT / name).exists()
        for what in known - {breach.what for breach in found.get(name, ())}
    ]
    assert not new, "\n".join(["over the limits of tests/test_structure.py:", *new])
    assert not healed, "\n".join(["no longer so: take it out of KNOWN in tests/test_structure.py:", *healed])


# ---- that they are found --------------------------------------------------------------------------------------------


def test_what_is_too_long_or_too_wide_is_found() -> None:
    wide = ", ".join(f"a{i}" for i in range(9))
    source = f"class A:\n    def __init__(self, {wide}): ...\n    def f(self):\n" + "        g()\n" * 60 + "\n" * 350
    assert [breach.what for breach in oversized(source)] == ["file", "A.__init__", "A.f"]
    assert not list(oversized("class A:\n    def __init__(self, a, *, b, c, d, e, f, g, h): ...\n" + "\n" * 348))


@pytest.mark.parametrize(
    "line",
    [
        "link._renew = lambda: None",
        "self.group._renew = lambda: None",
        "link.a, link._renew[3] = 1, 2",
        "del link._renew",
        "link._renew += 1",
        "monkeypatch.setattr(link, '_renew', None)",
        "monkeypatch.setattr('peer.link.background._renew', None)",
        "monkeypatch.setitem(link._renew, 'a', 1)",
        "setattr(link, '_renew', 1)",
        "mock.patch.object(Link, '_renew')",
        "from peer.link import Link\nclass Own(Link):\n    def _renew(self): ...",
        "from peer.link import Link\nclass Own(Link):\n    def f(self): self._renew = 1",
    ],
)
def test_a_private_member_that_is_set_is_found(line: str) -> None:
    assert len(list(intrusions(line, {"_renew"}))) == 1
    assert not list(intrusions(line, {"_other"}))


def test_what_a_test_does_with_its_own_is_no_concern_of_the_house() -> None:
    own = "class Own:\n    def _renew(self): self._renew = 1\nlink.renew = link._renew\nlink.__dict__['a'] = 1"
    assert not list(intrusions(own, {"_renew"}))
