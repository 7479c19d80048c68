"""The queue against a model: sorted by priority, then by arrival."""

from hypothesis import given
from hypothesis import strategies as st

from proxyd.queues import PriorityQueue

STEPS = st.lists(st.one_of(st.integers(0, 9), st.tuples(st.just("take"), st.integers(0, 5))))


@given(STEPS)
def test_like_a_sorted_list(steps: list[int | tuple[str, int]]) -> None:
    queue: PriorityQueue[int] = PriorityQueue()
    model: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            queue.put(number, step)
            model.append((-step, number))
        else:
            model.sort()
            assert list(queue) == [number for _, number in model]
            taken, model = model[: step[1]], model[step[1] :]
            assert queue.take(step[1]) == [number for _, number in taken]
        assert len(queue) == len(model)
    assert queue.take(len(queue)) == [number for _, number in sorted(model)]


def test_repr_tells_the_levels() -> None:
    queue: PriorityQueue[str] = PriorityQueue()
    queue.put("a", 9)
    queue.put("b", 5)
    assert repr(queue) == "<PriorityQueue {5: 1, 9: 1}>"
