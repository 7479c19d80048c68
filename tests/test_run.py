"""`run.sh`: what `make test` runs passes only if both halves do, and shows how both ended."""

import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.sh")
# Stands in for python: writes down what it was asked, and ends as its folder says.
STUB = """#!/bin/sh
cd "$(dirname "$0")" || exit 70
half=crowd
for word; do [ "$word" = alone ] && half=alone; done
echo "$*" >"$half.asked"
echo "some tests of $half"
echo "== $half $(cat "$half.status") =="
exit "$(cat "$half.status")"
"""


@pytest.mark.parametrize(
    ("crowd", "alone", "status"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (0, 1, 1),
        (1, 1, 1),
        # 5: none was chosen, which is a fault only if there is none in the other half either.
        (5, 0, 0),
        (0, 5, 0),
        (5, 1, 1),
        (1, 5, 1),
        (5, 5, 5),
        # Interrupted: the other half is not begun.
        (2, 0, 2),
        (0, 4, 4),
    ],
)
def test_both_halves_must_pass(tmp_path: Path, crowd: int, alone: int, status: int) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    (tmp_path / "crowd.status").write_text(str(crowd))
    (tmp_path / "alone.status").write_text(str(alone))
    done = subprocess.run([RUN, stub, "-k", "this or that", "tests/wire"], stdout=subprocess.PIPE, text=True)
    assert done.returncode == status
    chosen = "-k this or that tests/wire\n"
    assert (tmp_path / "crowd.asked").read_text() == (
        f"-m pytest --numprocesses=2 --dist=loadfile -m not alone {chosen}"
    )
    if crowd == 2:
        assert not (tmp_path / "alone.asked").exists()
    else:
        assert (tmp_path / "alone.asked").read_text() == f"-m pytest -m alone {chosen}"
    if status in (0, 1):
        assert done.stdout.splitlines()[-2:] == [f"== crowd {crowd} ==", f"== alone {alone} =="]
