"""Where a source's files come from: paths, patterns, tables, what lies elsewhere; and what run.toml says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from coordinator.dataset import sources
from coordinator.dataset.sources import files_of
from coordinator.run_config import DataSource, RunConfig, SourceConfig
from protocol.data_spec import SequenceRules
from protocol.errors import InputError, NetworkError, RunSpecError
from protocol.installed import this_installation
from tests.kit.data_fixtures import TOOLS
from tests.kit.http_server import serving
from tests.kit.hub_server import Hub, serve
from tests.kit.preparing import both_sides, plain, prepared, rules, source, write_records

TEXTS = [f"wood number {number}" for number in range(200)]
EVERY = rules(held_out=0.3, held_out_sequences=1000)


def taken(tmp_path: Path, *some: SourceConfig, **options: Any) -> list[str]:
    """The texts that sources come to, sorted."""
    tokenizer = plain()
    made = prepared(tmp_path, *some, tokenizer=tokenizer, sequences=EVERY, **options)
    train, held_out = both_sides(tokenizer, tmp_path / "data", made)
    return sorted(train + held_out)


# ---- on this machine -------------------------------------------------------------------------------------------------


def test_a_folder_or_a_pattern_gives_its_files_by_name_and_others_are_told(tmp_path: Path) -> None:
    for name, part in (("b", TEXTS[:50]), ("a", TEXTS[50:100]), ("deep/c", TEXTS[100:])):
        write_records(tmp_path / "wood" / f"{name}.jsonl", part)
    for name in ("README.md", "more.csv", ".hidden", "_SUCCESS"):
        (tmp_path / "wood" / name).touch()
    told: list[str] = []
    names = [file.name for file in files_of(source(path="wood"), tmp_path, told.append)]
    assert names == [str(tmp_path / "wood" / name) for name in ("a.jsonl", "b.jsonl", "deep/c.jsonl")]
    assert told == ["wood: 2 files of its folder are not read: README.md, more.csv"]
    assert taken(tmp_path, source(path="wood")) == taken(tmp_path, source(path="wood/**/*.jsonl")) == sorted(TEXTS)
    assert taken(tmp_path, source(path="wood/[ab].jsonl")) == sorted(TEXTS[:100])
    for path, message in (
        ("none", "no such file or folder"),
        ("no*.x", "no such file or folder"),
        ("nul\0", "nul"),
        ("n" * 300, "no such file"),
    ):
        with pytest.raises(InputError, match=f"wood: .*{message}"):
            files_of(source(path=path), tmp_path, print)
    with pytest.raises(InputError, match=r"wood: no files of kind text there") as caught:
        files_of(source(kind="text", path="wood"), tmp_path, print)
    assert ".txt" in caught.value.hint


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    write_records(tmp_path / "wood.jsonl", TEXTS)
    (file,) = files_of(source(), tmp_path, print)
    (tmp_path / "wood.jsonl").unlink()
    with pytest.raises(InputError, match=r"wood\.jsonl: cannot be read: No such file"), sources.opened(file):
        pass


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(values: dict[str, list[Any]]) -> Any:
    return pytest.importorskip("pyarrow", reason="needs the extra `data`").table(values)


def test_parquet_comes_in_groups_of_rows_and_bad_rows_are_told(tmp_path: Path) -> None:
    made = table({"text": [*TEXTS, None, "nul \0"], "id": list(range(202))})
    import pyarrow.parquet

    pyarrow.parquet.write_table(made, tmp_path / "wood.parquet", row_group_size=30)
    some = source(path="wood.parquet", on_bad="skip")
    assert taken(tmp_path, some) == sorted(TEXTS)
    two = prepared(tmp_path, some, folder="two", processes=2, sequences=EVERY)
    one = prepared(tmp_path, some, sequences=EVERY)
    assert one.root == two.root and len(one.manifest.shards) > 2
    assert [(item.line, item.reason) for item in one.report.bad] == [
        (201, "expected a string in 'text', got null"),
        (202, "a NUL character"),
    ]
    with pytest.raises(InputError, match=r"^wood: .*wood\.parquet: row 201: expected a string"):
        prepared(tmp_path, source(path="wood.parquet"), sequences=EVERY)
    with pytest.raises(InputError, match=r"no column 'body'") as caught:
        prepared(tmp_path, source(path="wood.parquet", text_field="body"), sequences=EVERY)
    assert "here are: text, id" in caught.value.hint
    with pytest.raises(InputError, match="a table, which has records"):
        prepared(tmp_path, source(path="wood.parquet", kind="text"), sequences=EVERY)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "wood.parquet").read_bytes()[:-300])
    with pytest.raises(InputError, match=r"cut\.parquet: not a whole Parquet file"):
        prepared(tmp_path, source(path="cut.parquet"), sequences=EVERY)


def test_chats_of_a_table_are_those_of_json(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes.", "name": "x"}] for text in TEXTS
    ]
    for turn in turns[::2]:
        del turn[1]["name"]
    tools = [[{"type": "function", "function": {"name": "weather", "description": "rain"}}] for _ in TEXTS]
    for tool in tools[::3]:
        del tool[0]["function"]["description"]
    made = table({"messages": turns, "tools": tools})
    import pyarrow.parquet

    pyarrow.parquet.write_table(made, tmp_path / "chats.parquet")
    records = [{"messages": turn, "tools": tool} for turn, tool in zip(turns, tools, strict=True)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    dated: dict[str, Any] = {
        "sequences": rules(template_date="2026-12-01"),
        "chunk_bytes": 1 << 20,
        "tokenizer": plain(TOOLS),
    }
    paths = ("chats.parquet", "chats.jsonl")
    by_table, by_json = (prepared(tmp_path, source("chats", kind="chat", path=path), **dated) for path in paths)
    assert by_table.root == by_json.root


def test_a_folder_that_datasets_saved_is_read_in_its_order(tmp_path: Path) -> None:
    made = table({"text": TEXTS})
    import pyarrow

    folder = tmp_path / "wood"
    folder.mkdir()
    for number in range(2):
        with (
            (folder / f"data-0000{number}-of-00002.arrow").open("wb") as file,
            pyarrow.ipc.new_stream(file, made.schema) as writer,
        ):
            writer.write_table(made.slice(100 * number, 100), max_chunksize=20)
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    assert taken(tmp_path, source(path="wood"), chunk_bytes=500) == sorted(TEXTS)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_indices_data_files": files}))
    with pytest.raises(InputError, match="a selection of a dataset"):
        files_of(source(path="wood"), tmp_path, print)
    (folder / "state.json").write_text("[]")
    with pytest.raises(InputError, match=r"a damaged state\.json"):
        files_of(source(path="wood"), tmp_path, print)
    (folder / "state.json").rename(folder / "dataset_dict.json")
    with pytest.raises(InputError, match="a dataset with several splits"):
        files_of(source(path="wood"), tmp_path, print)


def refuse(url: str) -> None:
    """As fsspec where s3fs is not installed."""
    raise ImportError("Install s3fs to access S3")


def test_what_is_not_installed_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wood.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"wood\.parquet: this needs pyarrow") as caught:
        prepared(tmp_path, source(path="wood.parquet"))
    assert caught.value.hint == this_installation().add("data")
    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(InputError, match=r"^wood: s3://bucket/a: cannot be read with what is .*s3fs") as caught:
        files_of(elsewhere(url="s3://bucket/a"), tmp_path, print)
    assert caught.value.hint == this_installation().add("data")


# ---- elsewhere -------------------------------------------------------------------------------------------------------


def elsewhere(**values: Any) -> SourceConfig:
    return source(path=None, **values)


def test_what_fsspec_knows_is_read_by_ranges(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, part in (("a", TEXTS[:90]), ("b", TEXTS[90:])):
        write_records(tmp_path / f"{name}.jsonl", part)
        memory.pipe_file(f"/wood/{name}.jsonl", (tmp_path / f"{name}.jsonl").read_bytes())
    memory.pipe_file("/wood/README.md", b"wood")
    for url in ("memory://wood", "memory://wood/*.jsonl"):
        assert taken(tmp_path, elsewhere(url=url)) == sorted(TEXTS)
    assert taken(tmp_path, elsewhere(url="memory://wood/a.jsonl")) == sorted(TEXTS[:90])
    with pytest.raises(InputError, match=r"^wood: memory://none: no such file"):
        files_of(elsewhere(url="memory://none"), tmp_path, print)
    with pytest.raises(NetworkError, match=r"^wood: nonsense://a: cannot be fetched: .*nonsense"):
        files_of(elsewhere(url="nonsense://a"), tmp_path, print)


def test_a_data_set_of_a_hub_is_read_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this hub is on loopback
    commit = "ab" * 20
    write_records(tmp_path / "hub" / "train-0.jsonl", TEXTS[:90])
    write_records(tmp_path / "hub" / "train-1.jsonl", TEXTS[90:180])
    write_records(tmp_path / "hub" / "test.jsonl", TEXTS[180:])
    with serve(Hub("cook/wood", commit, tmp_path / "hub", "datasets")) as hub:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.url})
        some = elsewhere(hub="cook/wood", revision=commit)
        assert taken(tmp_path, some) == sorted(TEXTS)
        assert taken(tmp_path, some.model_copy(update={"files": "train-*.jsonl"})) == sorted(TEXTS[:180])
        with pytest.raises((InputError, NetworkError), match=r"^wood: hf://datasets/cook/wood@none: "):
            files_of(elsewhere(hub="cook/wood", revision="none"), tmp_path, print)


class Ranges(SimpleHTTPRequestHandler):
    """Files of a folder; `ranges`: also by parts."""

    ranges = True

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        data = path.read_bytes() if path.is_file() else b""
        wanted = self.headers.get("Range") if self.ranges else None
        status = 200 if path.is_file() else 404
        size = len(data)
        if wanted and size:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(size, int(last) + 1) if last else size
            status, data = 206, data[int(first) : end]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server of the test's folder."""
    pytest.importorskip("aiohttp", reason="needs the extra `data`")
    monkeypatch.setattr(Ranges, "ranges", True)
    with serving(partial(Ranges, directory=str(tmp_path))) as url:
        yield url


def test_a_url_is_read_by_ranges_and_what_a_server_lacks_is_told(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "wood.jsonl", TEXTS)
    assert taken(tmp_path, elsewhere(url=f"{web}/wood.jsonl")) == sorted(TEXTS)
    with pytest.raises(InputError, match=r"^wood: http://.*/none\.jsonl: no such file"):
        files_of(elsewhere(url=f"{web}/none.jsonl"), tmp_path, print)
    monkeypatch.setattr(Ranges, "ranges", False)
    __import__("fsspec").filesystem("http").invalidate_cache()
    with pytest.raises(InputError, match="its server sends no parts of files"):
        prepared(tmp_path, elsewhere(url=f"{web}/wood.jsonl"), folder="other", sequences=EVERY)


# ---- run.toml --------------------------------------------------------------------------------------------------------

TOML = """
[run]
name = "wood"
[model]
path = "model"
license = "MIT"
[sync]
round_tokens = 100
"""
ONE, TWO = (
    '[[data]]\nname = "a"\nlicense = "MIT"\npath = "a"\n',
    '[[data]]\nname = "b"\nlicense = "MIT"\nurl = "s3://b/c"\n',
)


def load(tmp_path: Path, text: str) -> RunConfig:
    (tmp_path / "run.toml").write_text(TOML + text)
    return RunConfig.load(tmp_path / "run.toml")


def test_run_toml_has_one_file_or_several_sources(tmp_path: Path) -> None:
    config = load(tmp_path, f'{ONE}kind = "chat"\non_bad = "skip"\nweight = 2\n{TWO}[sequences]\npacking = false\n')
    assert [item.name for item in config.data_sources] == ["a", "b"] and config.data_sources[0].weight == 2
    assert config.sequences == SequenceRules(packing=False, documents_apart=True)
    with pytest.raises(RunSpecError, match="sources to be prepared"):
        _ = config.data_file
    one = load(tmp_path, '[data]\npath = "a"\nlicense = "MIT"\n')
    assert isinstance(one.data, DataSource) and one.data.rules == 2 and one.data_file == one.data
    with pytest.raises(RunSpecError, match=r"\[data\] is one file"):
        _ = one.data_sources


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE + "wieght = 2\n", r"unknown key 'data\.0\.wieght'"),
        (ONE + ONE, r"two \[\[data\]\] entries have one name"),
        (ONE + 'url = "s3://b/c"\n', r"data\.0: give exactly one of path, url, hub"),
        (ONE.replace("path", "hub"), r"data\.0: hub and revision go together"),
        (ONE + 'files = "*"\n', r"data\.0: files goes with hub"),
        (ONE + 'on_bad = "ignore"\n', r"data\.0\.on_bad: "),
        (ONE.replace('path = "a"', 'url = "a"'), r"data\.0\.url: "),
        (ONE + "[sequences]\npaking = true\n", r"unknown key 'sequences\.paking'"),
        ('[data]\npath = "a"\nlicense = "MIT"\n[sequences]\n', r"\[sequences\] goes with \[\[data\]\]"),
        ('[data]\npath = "a"\nlicence = "MIT"\n', r"unknown key 'data\.licence'|data\.license"),
    ],
)
def test_what_is_wrong_with_sources_is_told_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RunSpecError, match=message):
        load(tmp_path, text)
