"""A chat template writes the same on every machine, every day and in every process; what would not is refused."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coordinator.presets import kept
from coordinator.run_config import RunConfig
from lab import REPOSITORY
from lab.training_fixtures import make_config
from peer.training.chat_template import ChatTemplate, TemplateError
from protocol.errors import InputError, RunSpecError
from protocol.run_spec import RunSpec
from tests.kit.data_fixtures import CHAT, TOOLS, byte_tokenizer, chat, load, texts, write_jsonl

DAY = datetime.date(2026, 3, 9)
TURNS = [{"role": "user", "content": "Who cooks?"}, {"role": "assistant", "content": "Everyone."}]
LLAMA = (  # how Llama 3.x asks for the day
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}<|system|>Today Date: {{ date_string }}<|end|>" + CHAT
)
SHOW = """
import sys
from peer.training.chat_template import ChatTemplate
print(ChatTemplate(sys.argv[1], "2026-03-09")([{"role": "user", "content": "Who cooks?"}]))
"""


def render(source: str, *, day: str = "2026-03-09", messages: Any = TURNS, **variables: Any) -> str:
    return ChatTemplate(source, day, variables)(messages)


@pytest.mark.parametrize(
    "format", ["%d %b %Y", "%A, %B %d, %Y", "%Y-%m-%d", "%-d.%-m.%y %H:%M:%S %p %j %Z%z", "%c|%x|%X|%s|%U|%V", "100%%"]
)
def test_the_clock_of_a_template_stands_at_the_days_first_moment(format: str) -> None:
    expected = datetime.datetime(2026, 3, 9, tzinfo=datetime.UTC).strftime(format)
    assert render("{{ strftime_now('" + format + "') }}") == expected


def test_the_clock_has_english_names_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.nl_langinfo", lambda item: "März")
    assert render("{{ strftime_now('%B %p') }}") == "March AM"


@pytest.mark.parametrize("format", ["%Q", "%", "%E", "%-Q", "%\n"])
def test_a_clock_format_that_differs_by_platform_is_refused(format: str) -> None:
    with pytest.raises(TemplateError, match="strftime_now knows no"):
        render("{{ strftime_now(f) }}", f=format)


def test_another_process_zone_and_locale_give_the_same_text() -> None:
    environment = os.environ | {"TZ": "Etc/GMT-14", "LC_ALL": "de_DE.UTF-8", "PYTHONHASHSEED": "7"}
    source = LLAMA + "{% for name in messages[0] %}{{ name }}{% endfor %}"
    command = [sys.executable, "-c", SHOW, source]
    there = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert there.stdout.rstrip("\n") == render(source, messages=TURNS[:1])


def test_tokens_and_split_are_the_same_on_another_day_and_in_another_zone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [{"messages": [{"role": "user", "content": f"{i}"}, TURNS[1]]} for i in range(40)]
    path, digests = write_jsonl(tmp_path / "d.jsonl", chats), set()
    for zone in ("Etc/GMT+12", "Etc/GMT-14"):  # always at least a day apart
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        dataset = load(byte_tokenizer(LLAMA), path, kind="chat", template_date="2026-03-09", held_out=0.3)
        digests.add("".join(texts(byte_tokenizer(LLAMA), dataset.train, dataset.held_out)))
    monkeypatch.undo()
    time.tzset()
    assert len(digests) == 1 and "Today Date: 09 Mar 2026" in digests.pop()


def test_the_pinned_day_is_what_llamas_template_writes_with_one_beginning(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(LLAMA, front="<s>")
    dataset = chat(tokenizer, tmp_path / "d.jsonl", {"messages": TURNS}, template_date="2026-03-09")
    train, told = dataset.train, dataset.notes()
    assert told == ["the chat template writes the day: 2026-03-09, in this run, on all days"]
    (text,) = texts(tokenizer, train)
    assert text.startswith("<s><|system|>Today Date: 09 Mar 2026<|end|><|user|>")
    assert train.tokens_ST[0].tolist().count(0) == 1 + (512 - train.lengths[0]), "padding is 0, too"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ messages[0].items }}", "address in memory"),
        ("{{ messages | map('upper') }}", "address in memory"),
        ("{{ cycler(1, 2) }}", "address in memory"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include 'other' %}", "TypeError"),
        ("{{ raise_exception('roles\nmust ' ~ 'alternate ' * 10000) }}", "roles must alternate"),
        ("{{ '\\ud83d' }}", "half of a surrogate pair"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(999999999) %}{% endfor %}", "OverflowError"),
    ],
)
def test_what_a_template_raises_or_writes_that_cannot_be_used_is_one_short_line(source: str, why: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render(source)
    assert why in str(caught.value) and len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["{{ [1, 2] | random }}", "{% for", "{{ now }", "{% do x %}"])
def test_a_template_that_cannot_be_compiled_or_is_random_is_refused(tmp_path: Path, source: str) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": TURNS}] * 3)
    with pytest.raises(InputError, match="chat template cannot be used: line 1"):
        load(byte_tokenizer(source), path, kind="chat")


@pytest.mark.parametrize("source", ["{{ lipsum() }}", "{{ messages[0].content + 1 }}", "{{ messages[0].items }}"])
def test_a_template_that_fails_is_told_with_the_file_and_the_line(tmp_path: Path, source: str) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": TURNS}] * 3)
    for rules in (1, 2) if "+" in source else (2,):
        with pytest.raises(InputError, match=r"d\.jsonl: line 1: the chat template fails on this conversation"):
            load(byte_tokenizer(source), path, kind="chat", rules=rules)


def test_an_address_that_the_chat_itself_quotes_is_text() -> None:
    turns = [{"role": "user", "content": "What is <object at 0x7f00c0ffee>?"}, TURNS[1]]
    assert "0x7f00c0ffee" in render(CHAT, messages=turns)


@pytest.mark.parametrize(
    "source",
    [
        CHAT,
        TOOLS,
        "{{ bos_token }}{% set ns = namespace(n=0) %}"
        "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
        "{% for m in messages %}\n  {% generation %}\n{{ m.content | trim }}{% set x = 1 %}"
        "{% endgeneration %}{{ x }}\n{% endfor %}",
        "{{ messages | tojson(indent=2) }}{{ dict(a=messages[0].role) | tojson }}{% if tools is none %}none{% endif %}",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
        "{{ documents is defined }}",
    ],
)
def test_templates_render_as_transformers_renders_them(source: str) -> None:
    tokenizer = byte_tokenizer(source)
    ours = ChatTemplate(source, "2026-03-09", dict(tokenizer.special_tokens_map))
    for prompt in (False, True):
        expected = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompt)
        assert ours(TURNS, None, prompt) == expected


def test_a_tokenizer_with_several_templates_takes_the_one_for_tools(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer({"default": CHAT, "tool_use": TOOLS})
    records = [{"messages": TURNS, "tools": [{"type": "function", "function": {"name": "oven"}}]}, {"messages": TURNS}]
    assert sum("oven" in text for text in texts(tokenizer, chat(tokenizer, tmp_path / "d.jsonl", *records).train)) == 1
    with pytest.raises(InputError, match="no chat template for this"):
        chat(byte_tokenizer({"tool_use": TOOLS}), tmp_path / "d.jsonl", records[1])


# ---- the day in the run spec -----------------------------------------------------------------------------------------


def config(tmp_path: Path, **data: Any) -> RunConfig:
    return make_config(tmp_path, tmp_path / "d.jsonl", data=data)


def pin(config: RunConfig) -> RunSpec:
    pins = {"model_digest": "0" * 64, "model_name": "m", "parameters": 1, "trainable": 1}
    return config.pin(**pins, data_digest="0" * 64, data_size_bytes=1)


def test_a_new_run_of_chats_pins_the_day_of_its_first_start(tmp_path: Path) -> None:
    before = datetime.datetime.now(datetime.UTC).date().isoformat()
    pinned = pin(config(tmp_path, kind="chat")).data
    assert before <= (pinned.template_date or "") <= datetime.datetime.now(datetime.UTC).date().isoformat()
    assert pinned.rules == 2
    assert b"template_date" not in pin(config(tmp_path, kind="jsonl")).to_bytes()


def test_a_run_that_goes_on_keeps_the_day_and_the_rules_it_began_with(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text(
        '[run]\nname = "t"\n[model]\npath = "m"\nlicense = "MIT"\n[data]\npath = "d"\nlicense = "MIT"\nkind = "chat"\n'
        "[sync]\nround_tokens = 1\n"
    )
    first = pin(RunConfig.load(toml))
    long_ago = RunSpec.from_bytes(first.to_bytes().replace(str(first.data.template_date).encode(), b"2024-02-29"))
    assert pin(RunConfig.load(toml, long_ago)) == long_ago
    old = long_ago.model_copy(update={"data": long_ago.data.model_copy(update={"rules": 1, "template_date": None})})
    assert b"rules" not in old.to_bytes().partition(b'"data"')[2].partition(b"}")[0]
    assert pin(RunConfig.load(toml, old)) == old
    assert kept(old.model_dump(mode="json"))["data"] == {}


def test_the_host_may_name_the_day(tmp_path: Path) -> None:
    assert config(tmp_path, kind="chat", template_date="2024-07-26").data.template_date == "2024-07-26"
    assert config(tmp_path, kind="chat", template_date=DAY).data.template_date == "2026-03-09"


@pytest.mark.parametrize("day", ["2026-02-30", "26 Jul 2024", "2026-3-9", "", 20260309, datetime.datetime(2026, 3, 9)])
def test_what_is_no_day_is_refused(tmp_path: Path, day: Any) -> None:
    with pytest.raises(ValueError, match="template_date"):
        config(tmp_path, kind="chat", template_date=day)


def test_a_spec_of_chats_without_a_day_is_refused(tmp_path: Path) -> None:
    spec = pin(config(tmp_path, kind="chat", template_date="2026-03-09"))
    with pytest.raises(RunSpecError, match="template_date is missing"):
        RunSpec.from_bytes(spec.to_bytes().replace(b',"template_date":"2026-03-09"', b""))
