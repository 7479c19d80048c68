"""PROTOCOL.md, the verbs' table and the codes' table say the same."""

import re
from pathlib import Path

import pytest

import wire
from refreshd.worker import connection, proxies, requests
from wire import fields
from wire.compress import CHUNK_MAX_BYTES
from wire.errors import CODES, BadLine
from wire.lines import Line, parse
from wire.signatures import CLOCK_SKEW_MAX_S, NONCE_MAX_CHARS
from wire.verbs import LIST_MAX, VERBS

PAGE = (Path(wire.__file__).parent / "PROTOCOL.md").read_text()
PUSHES = {"!state", "!task", "!cancel", "!drain", "!engines", "!caught_up", "!drop", "!ask"}
# A definition stands at the beginning of a line.
FORMS = [
    (match[1], match[2])
    for match in re.finditer(r"^`([!+]?[a-z][a-z0-9_]*)((?: [^`]*)?)`(?:\s*→|:)", PAGE, re.MULTILINE)
]


def test_each_verb_is_defined_in_the_page_and_the_other_way_round() -> None:
    listed = {verb for verb, _ in FORMS}
    # `hello` and the second push of a line are defined in running text.
    assert "`hello v=1 role=client|proxy" in PAGE
    assert (listed | {"hello"} | PUSHES) == set(VERBS) | PUSHES
    assert set(re.findall(r"`(![a-z_]+)[ `]", PAGE)) == PUSHES


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_each_field_of_a_verb_is_in_its_forms(verb: object) -> None:
    name = verb.name  # type: ignore[attr-defined]
    forms = " ".join(form for listed, form in FORMS if listed == name)
    if name == "hello":
        forms = " ".join(re.findall(r"`hello [^`]*`", PAGE)) + " ".join(re.findall(r"`zip=[^`]*`", PAGE))
    named = set(re.findall(r"\b([a-z][a-z0-9_]*)=", forms))
    known = {field.name for field in verb.fields}  # type: ignore[attr-defined]
    assert named - known == set()
    # `error` and `ms` belong to some states of a report only, yet stand in one form each.
    assert known - named == set()


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_each_field_of_a_reply_is_in_the_page(verb: object) -> None:
    for field in re.findall(r"\b([a-z][a-z0-9_]*)=", verb.reply):  # type: ignore[attr-defined]
        assert f"{field}=" in PAGE


def test_each_code_is_in_the_table_and_the_other_way_round() -> None:
    rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|(.*)\|(.*)\|$", PAGE, re.MULTILINE)
    listed = {
        code: "retry" in may
        for names, _, may in rows
        for code in re.findall(r"`([a-z_]+)`", names)
        if code in CODES or "code=" in names
    }
    assert {code: row.retry for code, row in CODES.items()} == listed


def test_every_code_that_the_page_mentions_exists() -> None:
    assert set(re.findall(r"code=([a-z_]+)", PAGE)) <= set(CODES)


def test_words_are_listed() -> None:
    for word in (*fields.TASK_TYPES, *fields.STATES):
        assert f"`{word}`" in PAGE


@pytest.mark.parametrize(
    "number",
    [
        f"{LIST_MAX:,}", f"{CHUNK_MAX_BYTES:,}", f"{CLOCK_SKEW_MAX_S} s",
        f"1 to {NONCE_MAX_CHARS} characters",
        f"default {fields.DEFAULT_TTL_S}", f"default {fields.DEFAULT_PRIORITY}", "2^33", "366 days",
        "shards=64",
    ],
)  # fmt: skip
def test_limits_are_those_of_the_code(number: str) -> None:
    assert number in PAGE


def test_the_engine_has_the_limits_that_the_page_states() -> None:
    assert f"| {connection.PENDING_MAX:,};" in PAGE
    assert f"{connection.LINE_PATIENCE_S:.0f} s from its first byte" in PAGE
    assert f"reads nothing for {connection.WRITE_PATIENCE_S:.0f} s" in PAGE
    assert f"leaves {connection.PUSHES_MAX_BYTES >> 20} MiB of pushes" in PAGE
    assert f"default {requests.DEFAULT_LIMIT};" in PAGE
    assert f"cut at {proxies.ERROR_MAX_CHARS} characters" in PAGE
    assert f"after {proxies.OFFLINE_AFTER_MS // 1000} s without a line" in PAGE


def test_the_example_is_of_the_protocol() -> None:
    example = PAGE[PAGE.index("## A first conversation") :]
    lines = re.findall(r"^[<>] (.*)$", example, re.MULTILINE)
    assert len(lines) >= 8
    for raw in lines:
        try:
            assert isinstance(parse(raw.encode()), Line)
        except BadLine as error:
            pytest.fail(f"{raw}: {error}")
    assert {parse(raw.encode()).verb for raw in re.findall(r"^> (.*)$", example, re.MULTILINE)} <= set(VERBS)
