"""Talking with the other side of a hand-over: frames out, answers in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from refreshd.worker.handover import frames
from refreshd.worker.mesh import HAND, Sibling, make_frame

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

ANSWER_S = 10.0


class CannotGive(Exception):
    """The hand-over cannot go on; the text says why."""


class Talk:
    """This worker's end. `slot` is a sibling's, SUCCESSOR or PREDECESSOR."""

    def __init__(self, hub: Hub, slot: int) -> None:
        self.slot = slot
        self._hub = hub
        self._answers: list[type[frames.Frame]] = []
        self._wakened = asyncio.Event()

    def send(self, frame: frames.Frame) -> None:
        """Raises: CannotGive when the other side is gone."""
        self._stream().write(make_frame(HAND, 0, frames.encode(frame)))

    def tell(self, frame: frames.Frame) -> None:
        """As `send`, where another side that is gone need not know."""
        stream = self._hub.mesh.siblings.get(self.slot)
        if stream is not None:
            stream.write(make_frame(HAND, 0, frames.encode(frame)))

    @property
    def unsent_bytes(self) -> int:
        """What the other side has not taken yet. Raises: CannotGive."""
        return self._stream().unsent_bytes

    def _stream(self) -> Sibling:
        stream = self._hub.mesh.siblings.get(self.slot)
        if stream is None or stream.transport is None:
            raise CannotGive("the other worker is gone")
        return stream

    def heard(self, frame: frames.Frame) -> None:
        """An answer came."""
        self._answers.append(type(frame))
        self.wake()

    async def synced(self) -> None:
        """Waits until the other side has worked off all that it was sent. Raises: CannotGive."""
        self.send(frames.Sync())
        await self.answered(frames.Synced)

    async def answered(self, answer: type[frames.Frame]) -> None:
        """Waits for an answer. Raises: CannotGive."""
        try:
            async with asyncio.timeout(ANSWER_S):
                while answer not in self._answers:
                    await self.wait()
        except TimeoutError:
            raise CannotGive(f"the other worker did not answer within {ANSWER_S:g} s") from None
        self._answers.remove(answer)

    async def wait(self) -> None:
        """Waits until something has happened. Raises: CannotGive when the other side is gone."""
        self._stream()
        self._wakened.clear()
        await self._wakened.wait()

    def wake(self) -> None:
        """Something has happened; who waits looks again."""
        self._wakened.set()
