"""The table of verbs: fields that are read, roles that may ask."""

import pytest

from wire.errors import CODES, Refused
from wire.lines import parse
from wire.verbs import VERBS, Role, check_role, read_fields

_OPERATORS = {
    "list_workers", "list_proxies", "forget_proxy", "engine_status", "reload", "upgrade", "operation",
    "drain", "undrain", "list_quotas", "list_engines", "ask_proxies",
}  # fmt: skip


def test_values_are_read_and_absent_ones_left_out() -> None:
    values = read_fields(VERBS["list_tasks"], parse(b"list_tasks limit=5 colour=red"))
    assert values == {"limit": 5}


@pytest.mark.parametrize(
    ("raw", "code", "field"),
    [
        (b"get_task", "missing_field", "task_id"), (b"get_task task_id=", "bad_field", "task_id"),
        (b"list_tasks limit=0", "bad_field", "limit"), (b"list_tasks limit=10001", "bad_field", "limit"),
        (b"list_tasks state=done", "bad_field", "state"), (b"ready credit=-1", "bad_field", "credit"),
        (b"ready", "missing_field", "credit"), (b"report state=lost", "bad_field", "state"),
        (b"beat cpu=-1", "bad_field", "cpu"), (b"post_task task_id=t type=url", "missing_field", "target"),
        (b"post_task task_id=t type=url --", "missing_field", "target"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(raw: bytes, code: str, field: str) -> None:
    line = parse(raw)
    with pytest.raises(Refused) as caught:
        read_fields(VERBS[line.verb], line)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.code in CODES


@pytest.mark.parametrize(
    ("role", "allowed", "auth", "denied"),
    [
        (None, {"ping", "post_task", "hello", "stats"}, {"ready", "report", "beat"}, {"list_workers",
        "list_proxies", "reload"}),
        (Role.CLIENT, {"ping", "post_task", "watch_task"}, set(), {"ready", "report", *_OPERATORS}),
        (Role.PROXY, {"ping", "ready", "report", "beat"}, set(), {"post_task", "stats", *_OPERATORS}),
        (Role.ADMIN, {"ping", "post_task", *_OPERATORS}, set(), {"ready", "hello"}),
    ],
)  # fmt: skip
def test_who_may_ask_what(role: str | None, allowed: set[str], auth: set[str], denied: set[str]) -> None:
    for name in allowed:
        check_role(VERBS[name], role)
    for code, names in (("auth", auth), ("denied", denied)):
        for name in names:
            with pytest.raises(Refused) as caught:
                check_role(VERBS[name], role)
            assert caught.value.code == code


def test_the_table_is_sound() -> None:
    for name, verb in VERBS.items():
        assert name == verb.name
        assert verb.roles
        assert verb.doc
        assert verb.reply.startswith("+ " if verb.listing else "ok")
        assert len({field.name for field in verb.fields}) == len(verb.fields)
        assert verb.items is not None or not verb.items_required
        assert not verb.masters or verb.roles == {Role.ADMIN}
