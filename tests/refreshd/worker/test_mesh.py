"""The mesh: frames cut anywhere, requests that outlive the sibling they were sent to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.worker import mesh as module
from refreshd.worker.mesh import PUSHES, RELAY, REPLY, REQUEST, TELL, Mesh, Sibling, make_frame
from refreshd.worker.turns import Turn
from tests.refreshd.worker.core import Client, Quiet
from wire.errors import Refused

_PLAIN = 0x10


class Transport:
    """What a sibling writes to; `peer` is fed with it at once."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closing = False
        self.peer: Sibling | None = None

    def write(self, data: bytes) -> None:
        assert not self.closing, "uvloop raises here"
        self.written += data
        if self.peer is not None:
            self.peer.data_received(data)

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True

    def set_write_buffer_limits(self, high: int) -> None:
        pass


class Owner:
    """Answers requests with themselves, upside down; keeps all else."""

    def __init__(self, answers: bool = True) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.answers = answers
        self.turns: list[Turn] = []

    def mesh_request(self, turn: Turn, context: bytes, lines: list[bytes], plain: bool, slot: int) -> None:
        self.heard.append(("request", context, lines, plain, slot))
        self.turns.append(turn)
        if self.answers:
            turn.parts += [line[::-1] + b"\n" for line in lines]
            turn.release()

    def mesh_pushes(self, connection: int, data: bytes) -> None:
        self.heard.append(("pushes", connection, data))

    def mesh_relay(self, slot: int, name: str, data: bytes) -> None:
        self.heard.append(("relay", slot, name, data))

    def mesh_tell(self, slot: int, line: bytes) -> None:
        self.heard.append(("tell", slot, line))

    def mesh_joined(self, slot: int) -> None:
        self.heard.append(("joined", slot))

    def mesh_left(self, slot: int) -> None:
        self.heard.append(("left", slot))


class Loop:
    """A loop of which only the time is asked."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "log", Quiet())


def a_mesh(slot: int = 0, workers: int = 2, owner: Owner | None = None, loop: Any = None) -> Mesh:
    some_loop: Any = loop or Loop()
    return Mesh(slot, workers, owner or Owner(), some_loop)


def join(mesh: Mesh, slot: int) -> tuple[Sibling, Transport]:
    """A stream to a sibling that nobody reads."""
    sibling, transport = Sibling(mesh, slot), Transport()
    sibling.connection_made(transport)  # type: ignore[arg-type] # has what a sibling uses
    return sibling, transport


def connect(one: Mesh, two: Mesh) -> tuple[Transport, Transport]:
    """A stream between two workers."""
    (first, there), (second, back) = join(one, 1), join(two, 0)
    there.peer, back.peer = second, first
    # What was waiting when the stream came was written already.
    second.data_received(bytes(there.written))
    first.data_received(bytes(back.written))
    return there, back


lines = st.binary(min_size=1, max_size=20).filter(lambda line: b"\n" not in line)
frames = st.one_of(
    st.builds(
        lambda plain, number, some: (REQUEST | plain, number, b"\n".join([b"7 client ", *some])),
        st.sampled_from([0, _PLAIN]),
        st.integers(0, (1 << 64) - 1),
        st.lists(lines, min_size=1, max_size=4),
    ),
    st.tuples(st.just(PUSHES), st.integers(0, 1 << 40), st.binary(max_size=30)),
    st.tuples(st.just(RELAY), st.just(0), st.binary(max_size=20).map(lambda data: b"pop1\n" + data)),
    st.tuples(st.just(TELL), st.just(0), st.binary(max_size=30)),
)


@given(st.lists(frames, min_size=1, max_size=5), st.lists(st.integers(1, 30), min_size=1, max_size=10))
def test_frames_may_be_cut_anywhere(some: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    data = b"".join(make_frame(*frame) for frame in some)
    heard = []
    for sizes in ([len(data)], [1], cuts):
        owner = Owner(answers=False)
        sibling, _ = join(a_mesh(owner=owner), 1)
        at = 0
        while at < len(data):
            size = sizes[at % len(sizes)]
            sibling.data_received(data[at : at + size])
            at += size
        heard.append(owner.heard)
    assert heard[0] == heard[1] == heard[2]
    assert len(heard[0]) == len(some) + 1
    assert [(turn.number, turn.waiting) for turn in owner.turns] == [
        (number, 1) for kind, number, _ in some if kind & ~_PLAIN == REQUEST
    ]


def test_a_frame_that_is_too_large_ends_the_stream() -> None:
    sibling, transport = join(a_mesh(), 1)
    sibling.data_received((module.FRAME_MAX_BYTES + 1).to_bytes(4, "little"))
    assert transport.closing


def test_replies_take_their_places() -> None:
    one, two = a_mesh(), a_mesh(slot=1)
    connect(one, two)
    client = Client()
    turn = Turn(client)
    turn.parts += [b"", b"own\n", b""]
    one.forward(1, turn, [0, 2], [b"abc", b"def"], b"7 client key", plain=True)
    assert one.waiting == 0
    turn.release()
    assert client.replies == [b"cba\n", b"own\n", b"fed\n"]
    owner: Any = two.owner
    assert owner.heard[-1] == ("request", b"7 client key", [b"abc", b"def"], True, 0)


def test_what_a_sibling_did_not_answer_is_asked_of_its_successor() -> None:
    one = a_mesh()
    early = Client()
    turn = Turn(early)
    turn.parts.append(b"")
    one.forward(1, turn, [0], [b"early"], b"", plain=False)
    turn.release()
    silent = a_mesh(slot=1, owner=Owner(answers=False))
    there, _ = connect(one, silent)
    late = Client()
    turn = Turn(late)
    turn.parts.append(b"")
    one.forward(1, turn, [0], [b"late"], b"", plain=False)
    turn.release()
    assert one.waiting == 2
    assert (early.reply, late.reply) == ("", "")
    before = one.siblings[1]
    connect(one, a_mesh(slot=1))
    assert (early.reply, late.reply) == ("ylrae\n", "etal\n")
    assert one.waiting == 0
    assert there.closing
    owner: Any = one.owner
    assert owner.heard == [("joined", 1), ("left", 1), ("joined", 1)]
    # The end of the older stream is no news, and what it answers now is not heard.
    before.connection_lost(None)
    assert owner.heard[3:] == []
    before.data_received(make_frame(REPLY, 1, b"again"))
    assert early.reply == "ylrae\n"


def test_a_sibling_that_is_gone() -> None:
    mesh = a_mesh(workers=3)
    sibling, transport = join(mesh, 2)
    mesh.tell(b"all")
    mesh.tell(b"nobody there", 1)
    mesh.push(1, 5, b"x\n")
    mesh.relay(1, "pop1", b"x\n")
    assert transport.written == make_frame(TELL, 0, b"all")
    # Between its end and the news of it, nothing is written, and requests wait.
    transport.closing = True
    mesh.tell(b"late")
    turn = Turn(Client())
    turn.parts.append(b"")
    mesh.forward(2, turn, [0], [b"x"], b"", plain=False)
    sibling.connection_lost(None)
    assert mesh.siblings == {}
    assert mesh.waiting == 1


def test_what_may_wait_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUESTS_MAX", 3)
    mesh = a_mesh(workers=3)
    turn = Turn(Client())
    turn.parts += [b""] * 3
    mesh.check_room(1)
    mesh.forward(1, turn, [0, 1, 2], [b"a", b"b", b"c"], b"", plain=False)
    with pytest.raises(Refused, match="is behind") as caught:
        mesh.check_room(1)
    assert caught.value.code == "busy"
    mesh.check_room(2)
    connect(mesh, a_mesh(slot=1))
    mesh.check_room(1)


def test_who_waits_too_long_is_cut_off() -> None:
    class Impatient(Client):
        aborted = 0

        def abort(self) -> None:
            self.aborted += 1

    loop = Loop()
    mesh = a_mesh(loop=loop)
    client = Impatient()
    turn = Turn(client)
    turn.parts += [b"", b""]
    mesh.forward(1, turn, [0], [b"a"], b"", plain=False)
    loop.now += module.PATIENCE_S / 2
    mesh.forward(1, turn, [1], [b"b"], b"", plain=False)
    mesh.give_up_on_late()
    assert (client.aborted, mesh.waiting) == (0, 2)
    loop.now += module.PATIENCE_S / 2 + 1
    mesh.give_up_on_late()
    assert (client.aborted, mesh.waiting) == (1, 1)
    # Its successor is not asked for nobody.
    owner = Owner()
    connect(mesh, a_mesh(slot=1, owner=owner))
    assert [heard[2] for heard in owner.heard if heard[0] == "request"] == [[b"b"]]


def test_what_was_held_is_asked_once() -> None:
    """Its answer may take a commit; were it asked again meanwhile, the repeat could be answered first."""
    mesh = a_mesh(workers=4, owner=Owner(answers=False))
    for slot in (1, 2):
        mesh.pause(slot)
        turn = Turn(Client())
        turn.parts.append(b"")
        mesh.forward(slot, turn, [0], [b"a%d" % slot], b"7 client key", plain=True)
    for slot in (1, 2):
        mesh.end_pause(slot)
    mesh.freeze()
    turn = Turn(Client())
    turn.parts.append(b"")
    mesh.forward(module.FROZEN, turn, [0], [b"frozen"], b"7 client key", plain=True)
    mesh.thaw_here()
    mesh.ask_held()
    owner: Any = mesh.owner
    assert [heard[2] for heard in owner.heard] == [[b"a1"], [b"a2"], [b"frozen"]]
    assert mesh.waiting == 3


def test_one_that_is_no_more_owes_nothing() -> None:
    """What clients asked of it is this worker's to answer by now; of what all are asked, its part is none."""

    async def test() -> None:
        mesh = a_mesh(workers=3, loop=asyncio.get_running_loop())
        connect(mesh, a_mesh(slot=1))
        join(mesh, 2)
        client = Client()
        turn = Turn(client)
        turn.parts.append(b"")
        mesh.forward(2, turn, [0], [b"abc"], b"7 client key", plain=True)
        turn.release()
        asked = asyncio.create_task(mesh.ask_all(b"def", 30))
        # A turn of the loop for the task to begin, one for what it asks to be on its way.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert mesh.waiting == 2
        mesh.forget(2)
        mesh.ask_held()
        assert await asked == [b"fed\n"]
        assert client.replies == [b"cba\n"]
        assert (mesh.waiting, mesh.others) == (0, [1])
        owner: Any = mesh.owner
        assert owner.heard[-2:] == [("left", 2), ("request", b"7 client key", [b"abc"], True, module.HELD)]
        mesh.forget(2)
        assert owner.heard[-2][0] == "left"

    asyncio.run(test())


def test_asking_on_ones_own_behalf() -> None:
    async def test() -> None:
        mesh = a_mesh(workers=2, loop=asyncio.get_running_loop())
        connect(mesh, a_mesh(slot=1))
        assert await mesh.ask(1, b"abc", 30) == b"cba\n"
        assert await mesh.ask_all(b"abc", 30) == [b"cba\n"]
        silent = a_mesh(workers=2, loop=asyncio.get_running_loop())
        with pytest.raises(TimeoutError):
            await silent.ask(1, b"abc", 0.001)
        assert await a_mesh(workers=1).ask_all(b"abc", 30) == []

    asyncio.run(test())
