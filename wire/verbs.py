"""Every verb a peer may send to an engine: who, with which fields, answered how.

One table. The engine's dispatch, the clients and the reference in PROTOCOL.md
rest on it; a test holds the three together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from wire import fields as f
from wire.errors import Refused
from wire.fields import Field
from wire.lines import Line


class Role:
    """What a connection was greeted as. Checked once, in dispatch."""

    CLIENT = "client"
    PROXY = "proxy"
    ADMIN = "admin"
    """A connection over the admin socket; it never greets."""


class Verb(NamedTuple):
    """One row of the table. `items` is what the items are called, None where there are none."""

    name: str
    roles: frozenset[str]
    fields: tuple[Field, ...]
    doc: str
    reply: str
    items: str | None = None
    items_required: bool = False
    listing: bool = False
    """The reply `ok n=N` is followed by N lines that begin with `+ `."""
    masters: bool = False
    """Answered by the engine's master, on a connection of its own; a worker refuses it."""


_TASK_ID = Field("task_id", f.read_id, "1 to 64 of A-Za-z0-9._:-", required=True)
_COUNT = f.integer(0, f.COUNT_MAX)
_COUNT_WANTED = "a whole number, 0 or more"
_ANYONE = frozenset({Role.CLIENT, Role.PROXY, Role.ADMIN})
_CLIENTS = frozenset({Role.CLIENT, Role.ADMIN})
_PROXIES = frozenset({Role.PROXY})
_ADMINS = frozenset({Role.ADMIN})
LIST_MAX = 10_000

_TABLE = (
    Verb(
        "hello",
        frozenset({Role.CLIENT, Role.PROXY}),
        (
            Field("v", f.integer(1, 1), "1", required=True),
            Field("role", f.one_of("client", "proxy"), "client or proxy", required=True),
            Field("key", f.read_id, "the name of a key"),
            Field("ts", f.integer(0, f.DUE_MAX_S), "Unix seconds"),
            Field("nonce", f.read_nonempty, "1 to 128 characters, used once"),
            Field("sig", f.read_sig, "64 lower-case hex digits"),
            Field("worker", f.integer(0, f.COUNT_MAX), "the number of a worker"),
            Field("zip", f.one_of("snappy"), "snappy"),
            Field("name", f.read_id, "a proxy's name, 1 to 64 of A-Za-z0-9._:-"),
            Field("group", f.read_id, "a group's name, 1 to 64 of A-Za-z0-9._:-"),
            Field("layer", f.integer(0, 15), "0 to 15, 0 being nearest to the origin"),
            Field("learn", f.read_flag, "0 or 1"),
            Field("catch_up", f.read_flag, "0 or 1"),
            Field("drop_after", f.integer(1, f.TTL_MAX_S), f"1 to {f.TTL_MAX_S} seconds"),
            Field("asks", f.read_flag, "0 or 1"),
            Field("verify", f.read_flag, "0 or 1"),
            Field("receipt_key", f.read_key_hex, "64 lower-case hex digits"),
        ),
        "greets; the first request of a connection, or left out",
        "ok v=1 engine=E worker=I workers=W shards=64 line_max=B [store=S] [catch_up=1] [receipts=1]",
    ),
    Verb("ping", _ANYONE, (), "asks whether the engine answers", "ok now=MS [draining=1]"),
    Verb(
        "post_task",
        _CLIENTS,
        (
            _TASK_ID,
            Field("type", f.one_of(*f.TASK_TYPES), "one of " + ", ".join(f.TASK_TYPES), required=True),
            Field("scope", f.read_names, "comma-separated groups or proxy names"),
            Field("due", f.integer(0, f.DUE_MAX_S), "Unix seconds"),
            Field("ttl", f.integer(1, f.TTL_MAX_S), f"1 to {f.TTL_MAX_S} seconds"),
            Field("priority", f.integer(0, 9), "0 to 9"),
            Field("callback", f.read_url, "an absolute http or https URL"),
            Field("force", f.read_flag, "0 or 1"),
            Field("verify", f.read_flag, "0 or 1"),
            Field("then", f.one_of(f.THEN_PREFETCH), f"{f.THEN_PREFETCH}, of a task with type=url"),
        ),
        "gives the engine a task",
        "ok task_id=ID state=STATE total=N [dup=1]",
        items="target",
        items_required=True,
    ),
    Verb(
        "get_task",
        _CLIENTS,
        (_TASK_ID,),
        "asks for a task's state and counts",
        "ok task_id=ID type=T state=S total=N done=N failed=N created=MS updated=MS",
    ),
    Verb(
        "task_detail",
        _CLIENTS,
        (_TASK_ID,),
        "asks for a task's state at each proxy",
        "+ proxy=P layer=L state=S done=N failed=N ms=M [verified=1] [error=TEXT]",
        listing=True,
    ),
    Verb(
        "task_receipt",
        _CLIENTS,
        (_TASK_ID, Field("after", f.read_id, "a proxy's name")),
        "asks for what proxies have signed of a task, by their names, a page at a time",
        "+ proxy=P bytes=N receipt=JSON",
        listing=True,
    ),
    Verb("cancel_task", _CLIENTS, (_TASK_ID,), "ends a task", "ok task_id=ID state=STATE"),
    Verb(
        "watch_task",
        _CLIENTS,
        (_TASK_ID,),
        "get_task, then a push at every change until the state is final",
        "ok task_id=ID type=T state=S total=N done=N failed=N created=MS updated=MS",
    ),
    Verb(
        "list_tasks",
        _CLIENTS,
        (
            Field("state", f.one_of(*f.STATES), "one of " + ", ".join(f.STATES)),
            Field("limit", f.integer(1, LIST_MAX), f"1 to {LIST_MAX}"),
            Field("after", f.read_id, "a task id"),
        ),
        "lists tasks, newest first",
        "+ task_id=ID type=T state=S total=N done=N failed=N created=MS updated=MS",
        listing=True,
    ),
    Verb("stats", _CLIENTS, (), "lists the engine's figures", "+ name=NAME value=V", listing=True),
    Verb(
        "ready",
        _PROXIES,
        (Field("credit", _COUNT, "how many more targets may be outstanding", required=True),),
        "lets the engine have more targets outstanding at this connection",
        "ok",
    ),
    Verb(
        "report",
        _PROXIES,
        (
            Field("state", f.one_of("done", "active", "failed"), "done, active or failed", required=True),
            Field("task_id", f.read_id, "1 to 64 of A-Za-z0-9._:-"),
            Field("done", _COUNT, _COUNT_WANTED),
            Field("failed", _COUNT, _COUNT_WANTED),
            Field("ms", _COUNT, "milliseconds"),
            Field("error", f.read_text, "text"),
        ),
        "tells what became of tasks that were pushed",
        "ok n=N",
        items="id",
    ),
    Verb(
        "receipt",
        _PROXIES,
        (_TASK_ID,),
        "gives the engine what this proxy has signed of a task",
        "ok",
        items="receipt",
        items_required=True,
    ),
    Verb(
        "answer",
        _PROXIES,
        (Field("ask", f.integer(1, f.COUNT_MAX), "the number of an !ask", required=True),),
        "answers an `!ask`",
        "ok",
        items="answer",
        items_required=True,
    ),
    Verb(
        "beat",
        _PROXIES,
        (
            Field("fast", _COUNT, _COUNT_WANTED),
            Field("slow", _COUNT, _COUNT_WANTED),
            Field("inflight", _COUNT, _COUNT_WANTED),
            Field("cpu", f.read_number, "a number"),
            Field("mem", _COUNT, "bytes"),
        ),
        "tells that the proxy is alive, at least every 5 s on each connection",
        "ok now=MS workers=W [prefetch_bytes_per_s=N]",
    ),
    Verb(
        "list_workers",
        _ADMINS,
        (),
        "lists the worker processes; it works when no worker does",
        "+ worker=I pid=P state=S role=R generation=G release=V cpu_pct=F mem=BYTES up_s=N connections=N "
        "tasks=N restarts=N heartbeat_ms=N",
        listing=True,
        masters=True,
    ),
    Verb(
        "engine_status",
        _ADMINS,
        (),
        "asks how the engine is as a whole",
        "ok phase=P pid=P generation=G release=V workers=N ready=N "
        "[operation=N kind=K state=S step=TEXT why=TEXT ms=N]",
        masters=True,
    ),
    Verb(
        "reload",
        _ADMINS,
        (),
        "checks the configuration file and, if all of it is right, starts to bring it into effect",
        "ok operation=N",
        masters=True,
    ),
    Verb(
        "upgrade",
        _ADMINS,
        (),
        "as reload, and runs the code that is on disk from then on",
        "ok operation=N",
        masters=True,
    ),
    Verb(
        "operation",
        _ADMINS,
        (Field("operation", f.integer(1, f.COUNT_MAX), "the number of a reload or upgrade"),),
        "asks what became of a reload or upgrade; without a number, of the one that was asked for last",
        "ok operation=N kind=K state=S step=TEXT why=TEXT ms=N",
        masters=True,
    ),
    Verb(
        "drain",
        _ADMINS,
        (),
        "takes this engine out of service: new tasks get `draining`, all else goes on",
        "ok",
        masters=True,
    ),
    Verb("undrain", _ADMINS, (), "takes it back into service", "ok", masters=True),
    Verb(
        "list_proxies",
        _ADMINS,
        (),
        "lists the fleet",
        "+ proxy=P group=G layer=L listed=0|1 online=0|1 links=N credit=N outstanding=N waiting=N [seen=MS]"
        " [receipt_key=HEX]",
        listing=True,
    ),
    Verb(
        "ask_proxies",
        _ADMINS,
        (
            Field("what", f.one_of(*f.ASKS), "one of " + ", ".join(f.ASKS), required=True),
            Field("scope", f.read_names, "comma-separated groups or proxy names"),
            Field("type", f.one_of(*f.TASK_TYPES), "one of " + ", ".join(f.TASK_TYPES)),
            Field("force", f.read_flag, "0 or 1"),
            Field("verify", f.read_flag, "0 or 1"),
            Field("then", f.one_of(f.THEN_PREFETCH), f"{f.THEN_PREFETCH}, of a task with type=url"),
        ),
        "asks every proxy about itself, or what it would do with some targets; nothing is done",
        "+ proxy=P group=G layer=L state=S [ms=N] [answer=JSON]",
        items="target",
        listing=True,
    ),
    Verb(
        "forget_proxy",
        _ADMINS,
        (Field("name", f.read_id, "a proxy's name", required=True),),
        "takes a proxy that is gone for good out of the fleet; new tasks do not wait for it",
        "ok",
    ),
    Verb(
        "list_quotas",
        _ADMINS,
        (),
        "lists the keys: what they may do, what they use and have used",
        "+ key=K rate=N burst=N [spare=N] [rate_here=F] taken=N refused=N in_flight=N in_flight_max=N "
        "url=N url_max=N dir=N dir_max=N regex=N regex_max=N tag=N tag_max=N prefetch=N prefetch_max=N",
        listing=True,
    ),
    Verb(
        "list_engines",
        _ADMINS,
        (),
        "lists the engines that share the store",
        "+ engine=E number=N epoch=N self=0|1 alive=0|1 leads=0|1 draining=0|1 workers=N unfinished=N"
        " lease=MS lag=MS address=A release=V [leader_epoch=N] [error=TEXT]",
        listing=True,
    ),
)

VERBS: dict[str, Verb] = {verb.name: verb for verb in _TABLE}
# What the master answers on the admin socket; `ping` is answered by whoever is asked.
MASTER_VERBS = frozenset({"ping"} | {verb.name for verb in _TABLE if verb.masters})


def read_fields(verb: Verb, line: Line) -> dict[str, Any]:
    """The values of the fields that `verb` knows; those that are absent are left out.

    Raises: Refused, `missing_field` or `bad_field`.
    """
    values: dict[str, Any] = {}
    for field in verb.fields:
        text = line.fields.get(field.name)
        if text is None:
            if field.required:
                raise f.missing_field(field.name, field.wanted)
            continue
        try:
            values[field.name] = field.read(text)
        except ValueError:
            raise f.bad_field(field.name, text, field.wanted) from None
    if verb.items_required and not line.items and verb.items is not None:
        raise f.missing_field(verb.items, "at least one after --")
    return values


def check_role(verb: Verb, role: str | None) -> None:
    """Whether a connection of this role (None: it has not greeted) may use the verb.

    Raises: Refused, `auth` where a greeting is missing, else `denied`.
    """
    if role is None and Role.CLIENT in verb.roles:
        return
    if role in verb.roles:
        return
    if role is None and Role.PROXY in verb.roles:
        raise Refused("auth", f"{verb.name} needs a hello with role=proxy first")
    wanted = " or ".join(sorted(verb.roles))
    raise Refused("denied", f"{verb.name} is for {wanted}; this connection is {role or 'not greeted'}")
