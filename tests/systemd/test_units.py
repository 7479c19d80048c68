"""systemd's own tools have nothing to say against what systemd/ has, and would if there were something."""

import re
import tomllib
from pathlib import Path

import pytest

from proxyd.__main__ import EXIT_CONFIG as AGENT_EXIT_CONFIG
from proxyd.config import load as load_agent
from refreshd.__main__ import EXIT_CONFIG, EXIT_USAGE
from refreshd.config_file import ConfigFile
from tests.systemd.units import FOLDER, SERVICES, UNITS, PrivateRoot, values

pytestmark = pytest.mark.needs("systemd-analyze", "systemd-sysusers", "systemd-tmpfiles")


@pytest.fixture
def root(tmp_path: Path) -> PrivateRoot:
    return PrivateRoot(tmp_path)


@pytest.mark.parametrize("unit", UNITS)
def test_verify_has_nothing_to_say(root: PrivateRoot, unit: str) -> None:
    assert root.run("systemd-analyze", "verify", unit) == (0, "")


@pytest.mark.parametrize(
    ("unit", "old", "new", "said"),
    [
        ("refreshd.service", "RestartSec=2", "RestartSecs=2", "RestartSecs"),
        ("refreshd.service", "KillMode=mixed", "KillMode=some", "some"),
        ("refreshd.service", "WatchdogSec=30", "WatchdogSec=soon", "soon"),
        ("refreshd.service", "~@privileged", "~@priviledged", "@priviledged"),
        ("refreshd.service", "=/usr/bin/refreshd ", "=/usr/bin/refreshd2 ", "/refreshd2 is not executable"),
        ("proxyd.service", "[Service]", "[Services]", "Services"),
        ("refreshd.socket", "ListenStream=127", "#", "Listen"),
    ],
)  # fmt: skip
def test_verify_would_say_what_is_wrong(root: PrivateRoot, unit: str, old: str, new: str, said: str) -> None:
    root.change(unit, old, new)
    _, output = root.run("systemd-analyze", "verify", unit)
    assert said in output


@pytest.mark.parametrize("unit", SERVICES)
def test_the_exposure_is_below_3(root: PrivateRoot, unit: str) -> None:
    code, output = root.run("systemd-analyze", "security", "--offline=yes", "--threshold=29", unit)
    assert code == 0, output


def test_an_exposure_above_it_would_fail(root: PrivateRoot) -> None:
    text = (FOLDER / "refreshd.service").read_text()
    (root.units / "refreshd.service").write_text(text[: text.index("NoNewPrivileges=")])
    assert (
        root.run("systemd-analyze", "security", "--offline=yes", "--threshold=29", "refreshd.service")[0] == 1
    )


@pytest.mark.parametrize("unit", SERVICES)
def test_the_users_of_the_units_are_made(root: PrivateRoot, unit: str) -> None:
    name = unit.removesuffix(".service")
    code, output = root.run("systemd-sysusers", "--dry-run", str(FOLDER / f"{name}.sysusers"))
    assert (code, values(unit, "User"), values(unit, "Group")) == (0, [name], [name])
    assert f"Creating user '{name}'" in output
    assert f"Creating group '{name}'" in output


@pytest.mark.parametrize("unit", SERVICES)
def test_the_folders_of_the_units_are_made(root: PrivateRoot, unit: str) -> None:
    name = unit.removesuffix(".service")
    file = FOLDER / f"{name}.tmpfiles"
    with (root.path / "etc/group").open("a") as groups:
        groups.write(f"{name}:x:900:\n")
    # --clean reads all and, as nothing there has an age, does nothing.
    assert root.run("systemd-tmpfiles", "--clean", str(file)) == (0, "")
    made = re.findall(r"^d (\S+) ", file.read_text(), re.MULTILINE)
    assert f"/etc/{values(unit, 'ConfigurationDirectory')[0]}" in made
    assert values(unit, "LoadCredential")[0].partition(":")[2] in made


def test_an_unknown_group_would_be_told(root: PrivateRoot) -> None:
    code, output = root.run("systemd-tmpfiles", "--clean", str(FOLDER / "refreshd.tmpfiles"))
    assert (code, "Failed to resolve group 'refreshd'" in output) == (65, True)


def test_a_wrong_configuration_is_not_tried_again() -> None:
    for unit, codes in (
        ("refreshd.service", (EXIT_USAGE, EXIT_CONFIG)),
        ("proxyd.service", (2, AGENT_EXIT_CONFIG)),
    ):
        assert values(unit, "RestartPreventExitStatus") == [" ".join(map(str, codes))]


def test_the_engine_stops_before_systemd_loses_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/nowhere")
    engine = ConfigFile(str(FOLDER / "refreshd.toml")).load().engine
    assert engine.stop_deadline_s * 2 <= float(values("refreshd.service", "TimeoutStopSec")[0])
    assert engine.heartbeat_timeout_s * 2 < float(values("refreshd.service", "WatchdogSec")[0])
    agent = load_agent(FOLDER / "proxyd.toml")
    assert agent.stop_timeout_s + 5 <= float(values("proxyd.service", "TimeoutStopSec")[0])


def test_units_and_configuration_name_the_same_places() -> None:
    engine = tomllib.loads((FOLDER / "refreshd.toml").read_text())["engine"]
    unit = "refreshd.service"
    assert engine["admin"] == f"/run/{values(unit, 'RuntimeDirectory')[0]}/admin.sock"
    assert engine["admin"] in values(unit, "ExecReload")[0]
    assert engine["data"] == f"/var/lib/{values(unit, 'StateDirectory')[0]}"
    assert values("refreshd.socket", "ListenStream") == [engine["listen"]]


def test_the_agent_may_write_where_its_configuration_proposes() -> None:
    lines = (FOLDER / "proxyd.toml").read_text().splitlines()
    assert '#: caught_up_file = "${RUNTIME_DIRECTORY}/caught-up"' in lines
    assert values("proxyd.service", "RuntimeDirectory") == ["proxyd"]


def test_the_drop_in_for_newer_systemd_is_not_where_it_would_be_read(root: PrivateRoot) -> None:
    """systemd 252 ignores its Type, and the service would count as ready before it is."""
    assert not list(FOLDER.glob("*.d"))
    drop_in = root.units / "refreshd.service.d" / "notify-reload.conf"
    drop_in.parent.mkdir()
    drop_in.write_text((FOLDER / "refreshd.notify-reload.conf").read_text())
    _, output = root.run("systemd-analyze", "verify", "refreshd.service")
    # A newer one knows both; nothing else of it may be unknown to any.
    unknown = [
        line for line in output.splitlines() if "notify-reload" not in line and "ReloadSignal" not in line
    ]
    assert unknown == []
