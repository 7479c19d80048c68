"""Another configuration for a worker that runs: what of it takes effect in place (`settings.Reload`).

Whatever can be refused is refused before anything is changed. Nothing here looks
at tasks: it costs as much with millions of them as with none.

Who is connected and would not be let in any more is dismissed (`Connection.dismiss`):
without a signature where one is wanted now, with a key that is gone or whose secret
is another, as a proxy that is not allowed, or that has another group or layer now
and must greet anew. A greeting that is under way is looked at again when it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import structlog

from refreshd import descriptors
from refreshd.changes import compare
from refreshd.config import Config
from refreshd.errors import ConfigError
from refreshd.fleet import Proxy
from refreshd.settings import SETTINGS, Reload
from wire.verbs import Role

if TYPE_CHECKING:
    from refreshd.worker.connection import Connection
    from refreshd.worker.hub import Hub

log = structlog.get_logger()


def configure(hub: Hub, config: Config) -> None:
    """Brings all settings that take effect in place into effect; what needs new workers stays as it is.

    Raises: ConfigError for a change that needs a restart; nothing was changed then.
    """
    changes = compare(hub.config, config)
    if changes.restart:
        raise ConfigError([f"{name} takes effect at a restart only" for name in changes.restart])
    if not changes.in_place:
        return
    gone = _keys_that_are_gone(hub.config, config)
    proxies = {name: hub.fleet.get(name) for name in hub.proxies.sessions}
    hub.config = config = _with_the_same_workers(hub.config, config)
    hub.engine.configure(config)
    hub.greeter.configure(config)
    if hub.fleet.expect(Proxy(p.name, p.group, p.layer, listed=True) for p in config.proxies):
        hub.engine.fleet_changed()
    for saver in hub.engine.savers.values():
        saver.lane.set_retention(config.store.retention_s)
    _make_room(config)
    _ask_for_greetings(hub)
    moved = {name for name, before in proxies.items() if not _is_welcome(hub, name, before)}
    leaving = [c for c in hub.connections.values() if not _may_stay(c, gone, moved)]
    for connection in leaving:
        connection.dismiss()
    log.info("configured", changes=changes.summary(), dismissed=len(leaving))


def _keys_that_are_gone(old: Config, new: Config) -> set[str]:
    """The names of keys with which nobody could greet any more as they did."""
    secrets = {key.name: key.secret for key in new.keys}
    return {key.name for key in old.keys if secrets.get(key.name) != key.secret}


def _with_the_same_workers(old: Config, new: Config) -> Config:
    """`new`, but for what takes effect in new workers only."""
    kept: dict[str, dict[str, object]] = {}
    for row in SETTINGS:
        if row.reload is Reload.WORKERS:
            kept.setdefault(row.section, {})[row.key] = getattr(getattr(old, row.section), row.key)
    sections = {name: msgspec.structs.replace(getattr(new, name), **values) for name, values in kept.items()}
    return msgspec.structs.replace(new, **sections)


def _make_room(config: Config) -> None:
    limit, wanted = descriptors.make_room(config.engine.connections_max)
    if limit < wanted:
        log.warning("few file descriptors", limit=limit, wanted=wanted)


def _ask_for_greetings(hub: Hub) -> None:
    """Who has not asked for anything yet has to greet first, or no longer."""
    required = hub.config.engine.auth == "required"
    for connection in hub.connections.values():
        if connection.may_greet or not required:
            connection.caller.must(greet=required)


def _is_welcome(hub: Hub, name: str, before: Proxy | None) -> bool:
    """Whether a connected proxy is what it greeted as, and may be."""
    now = hub.fleet.get(name)
    if now is None or before is None:
        return False
    if not now.listed and not hub.config.engine.open_fleet:
        return False
    return (now.group, now.layer) == (before.group, before.layer)


def _may_stay(connection: Connection, gone: set[str], moved: set[str]) -> bool:
    caller = connection.caller
    if caller.role == Role.ADMIN or connection.may_greet:
        return True
    if connection.session is not None and connection.session.name in moved:
        return False
    if caller.key is None:
        return connection.hub.config.engine.auth != "required"
    return caller.key not in gone
