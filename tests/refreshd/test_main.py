"""The command `refreshd`: what it prints, its exit codes, and that --check touches nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refreshd import __main__ as command
from refreshd import __version__, config_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_check_says_ok_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--check"]) == 0
    Path("c.toml").write_text((ROOT / "docs/refreshd.example.toml").read_text())
    assert command.main(["--config", "c.toml", "--check"]) == 0
    assert capsys.readouterr().out == "ok\nok\n"
    assert os.listdir(tmp_path) == ["c.toml"]


def test_check_says_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.toml").write_text('[engine]\nworker = 3\nid = ""\n')
    assert command.main(["--config", "c.toml", "--check"]) == 78
    assert capsys.readouterr() == (
        "",
        "refreshd: c.toml: line 2: engine.worker: not a setting; did you mean engine.workers?\n"
        "refreshd: c.toml: line 3: engine.id: got '', wanted a name, 1 to 64 of A-Za-z0-9._:-\n",
    )


def test_a_wrong_configuration_starts_nothing(tmp_path: Path) -> None:
    Path("c.toml").write_text("[engin]\n")
    assert command.main(["--config", "c.toml"]) == 78
    assert os.listdir(tmp_path) == ["c.toml"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"[engine]\n# \xff\n", "line 2: not UTF-8"),
        (b"#" * (config_file.CONFIG_FILE_MAX_BYTES + 1), "the file has more than 4,194,304 bytes"),
    ],
)
def test_a_file_that_cannot_be_read(
    content: bytes | None, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("c.toml").write_bytes(content)
    assert command.main(["--config", "c.toml", "--check"]) == 78
    assert capsys.readouterr().err == f"refreshd: c.toml: {fault}\n"


@pytest.mark.parametrize(
    ("content", "secret"),
    [(b"hush\n", b"hush"), (b"hush", b"hush"), (b"hush\r\n", b"hush"), (b" hu sh \n\n", b" hu sh \n")],
)
def test_a_secret_is_what_the_file_holds(content: bytes, secret: bytes) -> None:
    Path("key").write_bytes(content)
    Path("c.toml").write_text('[[key]]\nname = "k"\nsecret_file = "key"\n')
    assert config_file.ConfigFile("c.toml").load().keys[0].secret == secret


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot read 'key': No such file or directory"),
        (b"\n", "'key': the file is empty; wanted a secret"),
        (b"x" * 4097, "'key': the file has more than 4,096 bytes"),
    ],
)
def test_a_secret_that_cannot_be_read(
    content: bytes | None, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("key").write_bytes(content)
    Path("c.toml").write_text('[[key]]\nname = "k"\nsecret_file = "key"\n')
    assert command.main(["--config", "c.toml", "--check"]) == 78
    assert capsys.readouterr().err == f"refreshd: c.toml: line 3: key.secret_file: {fault}\n"


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--nonsense"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        command.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"refreshd {__version__}\n"


def test_the_master_loads_neither_uvloop_nor_a_database() -> None:
    code = "import sys, refreshd.__main__; print({'uvloop', 'sqlite3', 'refreshd.worker'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
