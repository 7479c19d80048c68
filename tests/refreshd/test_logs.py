"""Logs are JSON lines on stderr, and never the reason for a fault."""

import json
import subprocess
import sys

RUN = """
from refreshd import logs
log = logs.get()
logs.configure(role="test", engine="e9")
log.info("up", workers=2, path=b"x", odd={1}, text="a\\nb")
log.debug("not shown")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a fault")
"""


def test_lines_are_json_with_what_is_always_there() -> None:
    ran = subprocess.run([sys.executable, "-c", RUN], capture_output=True, check=True)
    up, fault = (json.loads(line) for line in ran.stderr.splitlines())
    assert list(up)[:5] == ["ts", "level", "event", "role", "engine"]
    assert (up["level"], up["event"], up["role"], up["engine"]) == ("info", "up", "test", "e9")
    assert (up["workers"], up["text"]) == (2, "a\nb")
    assert up["ts"].endswith("Z")
    assert fault["level"] == "error"
    assert "ZeroDivisionError: division by zero" in fault["exception"]


def test_a_reader_that_is_gone_stops_nobody() -> None:
    code = RUN + "log.info('still here')\nprint('done')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdout is not None
    assert process.stdout.read() == b"done\n"
    process.stdout.close()
    assert process.wait() == 0
