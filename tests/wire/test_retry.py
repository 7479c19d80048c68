"""What a client decides: whether, when and where to try again, and how much is in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import CODES, ConnectionLost, PeerMisbehaved, Refused, TimedOut, WireError
from wire.retry import ADDRESSES_MAX, LONGEST_DELAY_S, RETRY_MS_MAX, Rotation, Verdict, Window, delay_s, judge


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_verdict(code: str) -> None:
    verdict = judge(Refused(code, "x"))
    if not CODES[code].retry:
        assert verdict is Verdict.FAIL
    elif code == "draining":
        assert verdict is Verdict.ELSEWHERE
    else:
        assert verdict is Verdict.AGAIN


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ConnectionLost("x"), Verdict.AGAIN), (PeerMisbehaved("x"), Verdict.FAIL),
        (TimedOut("x"), Verdict.FAIL),
        (Refused("from_the_future", "x"), Verdict.FAIL),
    ],
)  # fmt: skip
def test_other_errors(error: WireError, verdict: Verdict) -> None:
    assert judge(error) is verdict


@given(st.integers(1, 10**6), st.floats(0, 1), st.none() | st.integers(0, 10**15))
def test_delays_are_bounded(attempt: int, chance: float, retry_ms: int | None) -> None:
    delay = delay_s(attempt, chance, retry_ms)
    least = 0.0 if retry_ms is None else min(retry_ms, RETRY_MS_MAX) / 1000
    assert least <= delay <= least + LONGEST_DELAY_S


def test_delays_grow_and_jitter() -> None:
    assert [delay_s(attempt, 1.0) for attempt in (1, 2, 3, 4)] == [0.05, 0.1, 0.2, 0.4]
    assert delay_s(1, 1.0) == delay_s(2, 0.5)
    assert delay_s(50, 1.0) == LONGEST_DELAY_S
    assert delay_s(1, 1.0, 2000) == 2.05


def test_addresses_are_tried_in_turn_and_a_whole_round_waits() -> None:
    rotation = Rotation(["a", "b", "c"])
    tried = []
    for _ in range(4):
        tried.append((rotation.current, rotation.delay_s(1.0)))
        assert rotation.failed(rotation.current, rotation.failures)
    assert tried == [("a", 0.0), ("b", 0.0), ("c", 0.0), ("a", 0.05)]
    rotation.succeeded()
    assert rotation.delay_s(1.0) == 0.0
    assert "at b" in repr(rotation)


def test_a_single_address_has_nowhere_to_go() -> None:
    rotation = Rotation(["a"])
    assert not rotation.failed("a", 0)
    assert not rotation.leave("a")
    assert rotation.current == "a"
    assert rotation.delay_s(1.0) > 0


def test_attempts_side_by_side_count_as_one() -> None:
    rotation = Rotation(["a", "b"])
    for _ in range(10):
        rotation.failed("a", 0)
    assert rotation.failures == 1
    assert rotation.current == "b"


def test_an_engine_says_where_to_go() -> None:
    rotation = Rotation(["a", "b"])
    assert rotation.go_to(["c", "b"])
    assert rotation.current == "c"
    assert len(rotation) == 3
    assert not rotation.go_to(["c"])
    assert not rotation.go_to([])
    rotation.go_to([f"x{number}" for number in range(1000)])
    rotation.go_to(["one", "more"])
    assert len(rotation) <= ADDRESSES_MAX


@given(st.lists(st.integers(1, 50), max_size=40))
def test_the_window_bounds_requests_and_bytes(sizes: list[int]) -> None:
    window = Window(5, 60)
    inside: list[int] = []
    for size in sizes:
        while not window.fits(size):
            window.remove(inside.pop(0))
        window.add(size)
        inside.append(size)
        assert window.requests <= 5
        assert window.bytes <= 60


def test_a_request_alone_always_fits() -> None:
    window = Window(5, 10)
    assert window.fits(1000)
    window.add(1000)
    assert not window.fits(1)
    window.remove(1000)
    assert (window.requests, window.bytes) == (0, 0)
