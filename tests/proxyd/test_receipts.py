"""What an agent signs of a task, and the file of its key."""

import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest

from proxyd.config import load
from proxyd.errors import ConfigError
from proxyd.evidence import Evidence
from proxyd.outbox import Outbox
from proxyd.receipt_key import make_seed, read_seed
from proxyd.receipts import Notary, room_for
from proxyd.session import Identity
from proxyd.tasks import Task
from wire.lines import parse
from wire.receipts import RECEIPT_MAX_BYTES, Signer, is_genuine, read_receipt
from wire.tasks import PushHead

WHO = Identity("pop1", "eu", 2)
SEED = bytes(range(32))


def notary() -> Notary:
    made = Notary(lambda: 107.5, lambda: 1_795_250_007_500)
    made.use(SEED)
    return made


def a_task(*evidence: Evidence, left_out: int = 0) -> Task:
    head = PushHead("url", verify=True, then="prefetch")
    task = Task(b"t", Outbox(lambda: None), 3, head, 100.0, math.inf)
    task.open, task.failed = 0, 1
    task.evidence = list(evidence)
    task.evidence_left_out = left_out
    return task


def read(line: bytes) -> dict[str, Any]:
    """The payload, of a line whose signature holds."""
    parsed = parse(line[:-1])
    assert (parsed.verb, parsed.fields) == ("receipt", {"task_id": "t"})
    (item,) = parsed.items or ()
    receipt = read_receipt(item)
    assert is_genuine(receipt)
    assert receipt.key == Signer(SEED).public
    payload: dict[str, Any] = json.loads(receipt.payload)
    return payload


def test_what_it_says() -> None:
    seen = Evidence("v1", "http://h/ä", purges=2, purged_ms=5, verified_ms=6, hit=True, more={"by": "LOOK"})
    said = read(notary().line(a_task(seen, Evidence("v2", "http://h/b", error="no\x7f")), WHO, 1 << 20))
    assert said.pop("release")
    assert said == {
        "v": 1, "proxy": "pop1", "group": "eu", "layer": 2, "task": "t", "type": "url", "force": False,
        "verify": True, "then": "prefetch", "began_ms": 1_795_250_000_000, "ended_ms": 1_795_250_007_500,
        "targets": 3, "done": 2, "failed": 1, "listed": 2, "of": 2,
        "evidence": [
            {"cache": "v1", "target": "http://h/ä", "purges": 2, "purged_ms": 5, "verified_ms": 6,
             "hit": True, "more": {"by": "LOOK"}},
            {"cache": "v2", "target": "http://h/b", "error": "no\x7f"},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("line_max", [1 << 20, 65_536, 4_096])
@pytest.mark.parametrize("char", ["a", '"', "\\", "\x01", "é", " "])
def test_it_fits_whatever_has_to_be_escaped(line_max: int, char: str) -> None:
    """What failed is listed first, and what is left out is counted."""
    seen = [Evidence("v1", char * 500, error="bad" if number == 999 else None) for number in range(1000)]
    line = notary().line(a_task(*seen, left_out=7), WHO, line_max)
    assert len(line) < line_max
    item = (parse(line[:-1]).items or ("",))[0]
    assert len(item.encode()) <= RECEIPT_MAX_BYTES
    said = read(line)
    assert said["of"] == 1007
    assert said["listed"] == len(said["evidence"]) < 1000
    if said["listed"]:
        assert said["evidence"][0]["error"] == "bad"


def test_a_small_line_leaves_no_room_and_none_is_negative() -> None:
    assert room_for(100) == 0
    assert room_for(1 << 20) == (RECEIPT_MAX_BYTES - 1024) // 2


def test_the_key_is_made_when_it_is_first_needed() -> None:
    made = Notary(lambda: 0.0)
    assert (made.public, made.seed) == ("", b"")
    line = made.line(a_task(), WHO, 1 << 20)
    assert is_genuine(read_receipt((parse(line[:-1]).items or ("",))[0]))
    public, seed = made.public, made.seed
    made.line(a_task(), WHO, 1 << 20)
    made.use(b"")
    assert (made.public, made.seed) == (public, seed)
    made.use(SEED)
    assert made.public == Signer(SEED).public != public


# ── the outbox ────────────────────────────────────────────────────────────────────────────────


def test_a_receipt_goes_before_the_report_and_only_where_it_is_taken() -> None:
    box = Outbox(lambda: None)
    task = a_task()
    box.add_evidence(task)
    assert len(box) == 0
    box.certify = lambda _: b"receipt task_id=t -- x\n"
    box.add_done(b"other", 0.0)
    box.add_evidence(task)
    box.add_done(b"t", 0.0)
    kept, _ = box.take(0.0, 1 << 20)
    assert kept == [b"receipt task_id=t -- x\n", b"report state=done ms=0 -- other t\n"]
    box.certify = lambda _: b""
    box.add_evidence(task)
    assert len(box) == 0, "it could not be made"
    box.certify = lambda _: b"receipt task_id=t -- x\n"
    box.add_evidence(task)
    box.add_failed(task)
    kept, _ = box.take(0.0, 1 << 20)
    assert [line.split(b" ")[0] for line in kept] == [b"receipt", b"report"]


def test_one_that_is_too_long_for_another_engine_is_left_out_whole() -> None:
    box = Outbox(lambda: None)
    box.restore([b"receipt task_id=t -- %b\n" % (b"x" * 600), b"report state=done -- t\n"])
    kept, _ = box.take(0.0, 512)
    assert kept == [b"report state=done -- t\n"]


# ── the file ──────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_made_once_for_our_eyes_only(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert read_seed(path) == b""
    seed = make_seed(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_seed(path) == make_seed(path) == seed
    assert len(seed) == 32


def config(tmp_path: Path, name: str = "key") -> Path:
    path = tmp_path / "proxyd.toml"
    path.write_text(
        f'[agent]\nreceipt_key_file = "{name}"\n[[cache]]\nname = "v"\nkind = "varnish"\naddress = "h:1"\n'
    )
    return path


def test_the_configuration_reads_it_and_makes_none(tmp_path: Path) -> None:
    path = config(tmp_path)
    read = load(path)
    assert (read.receipt_key_file, read.receipt_seed) == (str(tmp_path / "key"), b"")
    assert not (tmp_path / "key").exists()
    seed = make_seed(tmp_path / "key")
    assert load(path).receipt_seed == seed


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("0" * 64, 0o640, "may be read by others"),
        ("0" * 63, 0o600, "hex digits"),
        ("-----BEGIN PRIVATE KEY-----", 0o600, "hex digits"),
        ("", 0o600, "hex digits"),
    ],
)
def test_another_file_is_not_taken_for_a_key(tmp_path: Path, text: str, mode: int, why: str) -> None:
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(ConfigError, match=rf"proxyd.toml:2: receipt_key_file: key .*{why}"):
        load(config(tmp_path))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="receipt_key_file: none/key is not there, and cannot be made"):
        load(config(tmp_path, "none/key"))
