"""Whether a greeting's signature holds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from refreshd.config import Config
from refreshd.worker.elsewhere import KEY_OF_ENGINE
from wire.errors import Refused
from wire.sessions import Hello
from wire.signatures import check_hello

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub


class Greeter:
    """Checks hellos against the configured keys."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.configure(hub.config)

    def configure(self, config: Config) -> None:
        """Who may come from now on."""
        self._required = config.engine.auth == "required"
        self._secrets = {key.name: key.secret for key in config.keys}

    def _secret_of(self, key: str) -> bytes | None:
        if key.startswith(KEY_OF_ENGINE):
            return self._hub.cluster.peers_secret or None
        return self._secrets.get(key)

    async def check(self, hello: Hello) -> None:
        """Raises: Refused, `auth`; TimeoutError when the keeper of the nonce does not answer."""
        self.check_signature(hello)
        if hello.key is not None:
            await self._hub.siblings.use_nonce(hello.key, hello.nonce)

    def check_signature(self, hello: Hello) -> None:
        """All of `check` but the nonce. Raises: Refused, `auth`."""
        if hello.key is None:
            if self._required:
                raise Refused("auth", "this engine wants a signed hello: key, ts, nonce and sig")
            return
        secret = self._secret_of(hello.key)
        if secret is None:
            raise Refused("auth", f"no key is called {hello.key}")
        check_hello(secret, hello.role, hello.key, hello.ts, hello.nonce, hello.sig, time.time())
