"""Questions that an operator asks of proxies: to whom they go, who has answered, and when it is too late.

    admin ── ask_proxies ──► this worker ── !ask ──► proxies that are connected here
                                 └── mesh_ask ──► siblings ── !ask ──► those that are connected only there
    proxy ── answer ask=N ──► the worker that asked

A proxy is linked to every worker as a rule, and asked by one. A question needs no credit and waits for
nothing: it is written at once, or not at all where a proxy does not read. An answer that nobody waits for
any more is dropped. A worker that hands over loses what it has asked; that ends by the deadline.

Bounded: questions at a time (ASKS_MAX, then `busy`), how long each is waited for (ASK_S), how long one answer
is (ANSWER_MAX_BYTES), and all of one question together (ANSWERS_MAX_BYTES).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from refreshd.worker import views
from refreshd.worker.turns import Turn
from wire.errors import Refused, WireError
from wire.fields import bad_field, missing_field
from wire.lines import Line, Value, format_line, format_refused
from wire.tasks import check_targets, check_then

if TYPE_CHECKING:
    from refreshd.fleet import Plan
    from refreshd.worker.hub import Hub
    from refreshd.worker.proxy_session import ProxySession

log = structlog.get_logger()

# An operator waits; a proxy that estimates sizes asks its caches, for 2 s at the most.
ASK_S = 3.0
# What a sibling has gathered within ASK_S must still come.
_MESH_S = ASK_S + 1.0
# Each holds up to ANSWERS_MAX_BYTES.
ASKS_MAX = 4
ANSWER_MAX_BYTES = 256 * 1024
ANSWERS_MAX_BYTES = 16 << 20
TARGETS_MAX = 100
TARGETS_MAX_BYTES = 64 * 1024


class Answer(msgspec.Struct, array_like=True):
    """What became of a question at one proxy. `state`: `answered`, `silent`, `unable` or `offline`."""

    state: str
    ms: int | None = None
    text: str = ""
    """JSON, of one that has answered."""


class Question:
    """A question that is waited for, and who has answered it."""

    __slots__ = ("answers", "bytes", "done", "left", "since")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.since = loop.time()
        self.left: set[str] = set()
        """Who was asked and has not answered."""
        self.answers: dict[str, Answer] = {}
        self.bytes = 0
        self.done: asyncio.Future[None] = loop.create_future()

    def take(self, name: str, text: str, now: float) -> None:
        """A proxy's answer; a second one, or one of a proxy that was not asked, is dropped."""
        if name not in self.left:
            return
        self.left.discard(name)
        ms = round((now - self.since) * 1000)
        self.bytes += len(text)
        if self.bytes > ANSWERS_MAX_BYTES:
            text = msgspec.json.encode({"error": _TOO_MUCH, "cut": True}).decode()
        self.answers[name] = Answer("answered", ms, text)
        if not self.left:
            self.end()

    def end(self) -> None:
        """Nobody else is waited for."""
        if not self.done.done():
            self.done.set_result(None)


_TOO_MUCH = f"left out: all answers together are longer than {ANSWERS_MAX_BYTES >> 20} MiB; ask with a scope"


class Asking:
    """The questions of one worker."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._running = 0
        """Questions of operators at this worker that are not answered yet."""
        self._questions: dict[int, Question] = {}
        # An answer to what the process before this asked must not be taken for one of ours.
        self._number = hub.generation << 16
        self.is_leaving = False
        """Whether connections move to another process: what is asked now would not be answered here."""

    def leave(self) -> None:
        """Nothing is waited for any more: who answers will do so elsewhere."""
        self.is_leaving = True
        for question in self._questions.values():
            question.end()

    # ── an operator asks ──────────────────────────────────────────────────────────────────

    def begin(self, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        """Answers an `ask_proxies` in the next place of the turn, within ASK_S. Raises: Refused."""
        if self._running >= ASKS_MAX:
            raise Refused("busy", f"{ASKS_MAX} questions are asked of proxies just now", retry_ms=1000)
        what = _what(line, values)
        plan = self.hub.fleet.plan(values.get("scope"))
        self._running += 1
        # Not one of `queries`: those are few, and this one waits.
        self.hub.background(self._answer(turn, turn.hold(), plan, what))

    async def _answer(self, turn: Turn, place: int, plan: Plan, what: bytes) -> None:
        try:
            answers = await self._ask([name for name, _ in plan.ranks], what)
            part = views.rows([self._row(name, number, answers) for name, number in _by_layer(plan)])
        except Refused as refused:
            part = format_refused(refused)
        except Exception:
            log.exception("a question of proxies could not be answered")
            part = format_refused(
                Refused("internal", "a fault of the engine; it is in its log", retry_ms=1000)
            )
        finally:
            self._running -= 1
        turn.fill(place, part)

    async def _ask(self, names: list[str], what: bytes) -> dict[str, Answer]:
        """Asks each proxy, here or through a sibling that reaches it."""
        here: list[str] = []
        there: dict[int, list[str]] = {}
        for name in names:
            slot = self.hub.proxies.way_to(name)
            if slot == self.hub.shards.slot:
                here.append(name)
            elif slot is not None:
                there.setdefault(slot, []).append(name)
        parts = await asyncio.gather(
            self.ask_here(here, what), *(self._ask_there(slot, some, what) for slot, some in there.items())
        )
        return {name: answer for part in parts for name, answer in part.items()}

    async def _ask_there(self, slot: int, names: list[str], what: bytes) -> dict[str, Answer]:
        line = b"mesh_ask names=%b %b" % (",".join(names).encode(), what)
        try:
            answer = await self.hub.mesh.ask(slot, line, _MESH_S)
            return _decoder.decode(answer)
        except (TimeoutError, msgspec.MsgspecError):
            # It is being replaced, or of a version that does not know this.
            return dict.fromkeys(names, Answer("silent"))

    def _row(self, name: str, layer: int, answers: dict[str, Answer]) -> dict[str, Value]:
        proxy = self.hub.fleet.get(name)
        answer = answers.get(name, Answer("offline"))
        return {
            "proxy": name,
            "group": proxy.group if proxy is not None else None,
            "layer": layer,
            "state": answer.state,
            "ms": answer.ms,
            "answer": answer.text or None,
        }

    # ── proxies that are connected here ───────────────────────────────────────────────────

    async def ask_here(self, names: list[str], what: bytes) -> dict[str, Answer]:
        """Asks proxies that are connected to this worker; returns what came within ASK_S."""
        answers: dict[str, Answer] = {}
        question = Question(self.hub.loop)
        self._number += 1
        push = b"!ask ask=%d %b\n" % (self._number, what)
        for name in names:
            session = self.hub.proxies.sessions.get(name)
            if session is None:
                answers[name] = Answer("offline")
            elif not session.answers:
                answers[name] = Answer("unable")
            elif session.wire.full or self.is_leaving:
                answers[name] = Answer("silent")
            else:
                question.left.add(name)
                session.wire.send(push)
        if not question.left:
            return answers
        number = self._number
        self._questions[number] = question
        try:
            async with asyncio.timeout(ASK_S):
                await question.done
        except TimeoutError:
            pass
        finally:
            del self._questions[number]
        return answers | question.answers | dict.fromkeys(question.left, Answer("silent"))

    def answered(self, session: ProxySession, number: int, items: tuple[str, ...]) -> None:
        """A proxy answers. Raises: Refused, for what is no answer."""
        if len(items) != 1:
            raise bad_field("answer", f"{len(items)} items", "one JSON object")
        (text,) = items
        if len(text) > ANSWER_MAX_BYTES:
            raise bad_field("answer", f"{len(text)} characters", f"at most {ANSWER_MAX_BYTES}")
        question = self._questions.get(number)
        try:
            # Looked at as a whole: an operator's program reads it next.
            msgspec.json.decode(text, type=dict)
        except (msgspec.MsgspecError, RecursionError):
            raise bad_field("answer", text, "one JSON object") from None
        if question is not None:
            question.take(session.name, text, self.hub.loop.time())

    async def asked_by_sibling(self, line: Line) -> bytes:
        """A sibling's `mesh_ask`."""
        fields = {key: value for key, value in line.fields.items() if key != "names"}
        what = format_line("x", fields, line.items or None)[2:-1]
        answers = await self.ask_here(line.fields["names"].split(","), what)
        return msgspec.json.encode(answers)


_decoder = msgspec.json.Decoder(dict[str, Answer])


def _what(line: Line, values: dict[str, Any]) -> bytes:
    """What proxies are asked: all of an `!ask` push that stands behind its number. Raises: Refused."""
    fields: dict[str, Value] = {"what": values["what"]}
    targets = line.items or ()
    if values["what"] == "explain":
        if "type" not in values:
            raise missing_field("type", "it goes with what=explain")
        if len(targets) > TARGETS_MAX or sum(map(len, targets)) > TARGETS_MAX_BYTES:
            wanted = f"at most {TARGETS_MAX} of {TARGETS_MAX_BYTES >> 10} KiB together"
            raise bad_field("target", f"{len(targets)} targets", wanted)
        check_then(values)
        check_targets(values["type"], targets)
        fields |= {"type": values["type"], "then": values.get("then")}
        fields |= {key: 1 for key in ("force", "verify") if values.get(key)}
    elif targets:
        raise bad_field("target", f"{len(targets)} targets", f"none with what={values['what']}")
    try:
        return format_line("x", fields, targets or None)[2:-1]
    except WireError as error:
        raise Refused("bad_line", str(error)) from None


def _by_layer(plan: Plan) -> list[tuple[str, int]]:
    return [(name, layer.number) for name, layer in plan.ranks]
