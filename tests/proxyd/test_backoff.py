"""Waits double up to the cap and are shortened by up to half."""

from proxyd.backoff import Backoff


def test_doubles_to_the_cap() -> None:
    backoff = Backoff(1, 5, lambda: 0.0)
    assert [backoff.next_s() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next_s() == 1


def test_jitter_shortens_by_half_at_most() -> None:
    backoff = Backoff(1, 5, lambda: 0.999)
    assert 0.5 < backoff.next_s() < 0.51
