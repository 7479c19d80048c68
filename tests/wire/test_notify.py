"""What a service tells its manager: the datagrams, and when there is nobody to tell."""

import pytest

from wire.notify import VALUE_MAX_CHARS, Notifier


class Manager:
    """Notes what is sent to it."""

    def __init__(self, error: OSError | None = None) -> None:
        self.heard: list[tuple[bytes, str | bytes]] = []
        self._error = error

    def send_to(self, datagram: bytes, address: str | bytes) -> None:
        self.heard.append((datagram, address))
        if self._error:
            raise self._error


def test_states_are_lines_of_one_datagram() -> None:
    manager = Manager()
    Notifier({"NOTIFY_SOCKET": "/run/n"}, 1, manager.send_to).send(READY="1", STATUS="2 workers – up")
    assert manager.heard == [("READY=1\nSTATUS=2 workers – up".encode(), "/run/n")]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("/run/systemd/notify", "/run/systemd/notify"),
        ("@a/b", b"\0a/b"),
        ("@\udcff", b"\0\xff"),
    ],
)
def test_paths_and_abstract_names(name: str, address: str | bytes) -> None:
    manager = Manager()
    Notifier({"NOTIFY_SOCKET": name}, 1, manager.send_to).send(STOPPING="1")
    assert manager.heard == [(b"STOPPING=1", address)]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_nobody_to_tell(environ: dict[str, str]) -> None:
    manager = Manager()
    notifier = Notifier({**environ, "WATCHDOG_USEC": "30000000"}, 1, manager.send_to)
    notifier.send(READY="1")
    notifier.reloading(1.0)
    assert (manager.heard, notifier.watchdog_s) == ([], None)


def test_a_value_is_one_line_of_bounded_length() -> None:
    manager = Manager()
    notifier = Notifier({"NOTIFY_SOCKET": "/n"}, 1, manager.send_to)
    notifier.send(STATUS="why:\nREADY=1")
    notifier.send(STATUS="x" * 100_000)
    assert [datagram for datagram, _ in manager.heard] == [
        b"STATUS=why: READY=1",
        b"STATUS=" + b"x" * VALUE_MAX_CHARS,
    ]


def test_a_value_that_is_no_text_does_not_raise() -> None:
    manager = Manager()
    Notifier({"NOTIFY_SOCKET": "/n"}, 1, manager.send_to).send(STATUS="file \udcff")
    assert manager.heard == [(b"STATUS=file ?", "/n")]


@pytest.mark.parametrize("error", [BlockingIOError(), ConnectionRefusedError(), FileNotFoundError()])
def test_a_manager_that_does_not_listen_is_nobodys_trouble(error: OSError) -> None:
    manager = Manager(error)
    Notifier({"NOTIFY_SOCKET": "/n"}, 1, manager.send_to).send(READY="1")
    assert len(manager.heard) == 1


def test_reloading_has_its_time() -> None:
    manager = Manager()
    Notifier({"NOTIFY_SOCKET": "/n"}, 1, manager.send_to).reloading(12.5)
    assert manager.heard == [(b"RELOADING=1\nMONOTONIC_USEC=12500000", "/n")]


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_time_by_whom_it_is_meant_for(
    environ: dict[str, str], watchdog_s: float | None
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/n", **environ}, 7, Manager().send_to)
    assert notifier.watchdog_s == watchdog_s
