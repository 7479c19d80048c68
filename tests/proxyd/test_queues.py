"""The queue against a model: sorted by priority, then by arrival."""

from hypothesis import given
from hypothesis import strategies as st

from proxyd.queues import PriorityQueue

STEPS = st.lists(
    st.one_of(st.integers(0, 9), st.tuples(st.sampled_from(["take", "take", "remove"]), st.integers(0, 5)))
)


@given(STEPS)
def test_like_a_sorted_list(steps: list[int | tuple[str, int]]) -> None:
    queue: PriorityQueue[int] = PriorityQueue()
    model: list[tuple[int, int]] = []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            queue.put(number, step)
            model.append((-step, number))
        elif step[0] == "remove":
            model.sort()
            odd = [number for _, number in model if number % 6 == step[1]]
            assert queue.remove(lambda number, step=step: number % 6 == step[1]) == odd  # type: ignore[misc]
            model = [each for each in model if each[1] not in odd]
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
