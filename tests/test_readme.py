"""What the README tells a newcomer to type works, and what it links to is there."""

import os
import re
import subprocess
from pathlib import Path

from tests.tools.demo_driver import DEADLINE_S, ROOT, UP, started

README = (ROOT / "README.md").read_text()


def commands(section: str) -> list[str]:
    """The lines after a `$` in the console blocks of SECTION."""
    text = README.partition(f"## {section}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    assert commands("Two commands") == ["make run", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^run demo: ", makefile, re.MULTILINE)
    assert re.search(r"^test: ", makefile, re.MULTILINE)


def test_the_first_use_works_as_it_is_written() -> None:
    export, *rest = commands("First use")
    assert len(rest) >= 5
    with started("run", "--cache", "little") as demo:
        demo.wait_for(UP)
        # The folder is .run/run unless somebody's `make run` holds it.
        folder = re.search(r"^files and logs: (\S+)/$", demo.text, re.MULTILINE)
        assert folder is not None
        export = export.replace(".run/run", folder[1])
        for command in rest:
            done = subprocess.run(
                ["bash", "-ec", f"{export}\n{command}"],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name != "REFRESHCTL_SOCKET"},
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, ""), command
            assert done.stdout, command


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^):#]+)\)", README)
    assert links
    assert [link for link in links if not Path(ROOT, link).exists()] == []
