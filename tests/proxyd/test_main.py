"""The program as it is started."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxyd.__main__ import main
from proxyd.caches import KINDS
from tests.proxyd.fake_engine import FakeEngine
from tools.servers import Agent
from tools.servers.waiting import free_port


def test_check_says_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == "ok\n"


def test_check_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "proxyd.toml"
    path.write_text('[agent]\nnmae = "x"\n[[cache]]\nname = "n"\nkind = "apache"\naddress = "a:1"\n')
    known = ", ".join(KINDS)
    assert main(["--config", str(path), "--check"]) == 78
    assert capsys.readouterr().err == (
        f"{path}:2: unknown key 'nmae' in [agent]; did you mean 'name'?\n"
        f"{path}:5: kind: 'apache' is not one of {known}\n"
    )


def test_check_connects_to_nobody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        path = tmp_path / "proxyd.toml"
        path.write_text(
            f'[agent]\nengines = ["127.0.0.1:{port}"]\n'
            f'[[cache]]\nname = "v"\nkind = "varnish"\naddress = "127.0.0.1:{port}"\n'
        )
        command = [sys.executable, "-m", "proxyd", "--config", str(path), "--check"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stdout) == (0, "ok\n")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_usage() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--nonsense"])


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_stops_with_or_without_an_engine(sent: signal.Signals) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with FakeEngine(2) as engine, Agent([engine.address, nobody], [("v1", "varnish", nobody)]) as agent:
        engine.wait_link(1)
        agent.signal(sent)
        assert agent.wait() == 0
        assert agent.log_lines()[-1]["event"] == "agent stopped"
