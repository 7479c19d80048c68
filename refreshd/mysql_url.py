"""`mysql://USER:PASSWORD@HOST:PORT/DATABASE?ssl_ca=FILE`, read and checked. Pure.

No error quotes the URL or a part of it that may hold the password.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

DEFAULT_PORT = 3306
_DATABASE = re.compile(r"[A-Za-z0-9_$-]{1,64}").fullmatch
_OPTIONS = ("socket", "ssl_ca", "ssl_cert", "ssl_key", "ssl_verify")
_WANTED = "wanted mysql://USER:PASSWORD@HOST:PORT/DATABASE"


class MysqlUrl(msgspec.Struct, frozen=True, kw_only=True):
    """Where a database is, and who asks.

    TLS is insisted on where `ssl_ca` is set. Without it, it is used where the server
    offers it, and nobody checks with whom; over a Unix socket never.
    """

    host: str
    port: int
    user: str
    password: str
    database: str
    socket: str = ""
    """The path of a Unix socket, in place of host and port."""
    ssl_ca: str = ""
    """A file of certificates; one of them must vouch for the server's."""
    ssl_cert: str = ""
    """The client's own certificate, and its key if that is in another file."""
    ssl_key: str = ""
    ssl_verify: str = "host"
    """`host`: the server's certificate must also name the host; `ca`: any that is vouched for will do."""

    @property
    def place(self) -> str:
        """Where it is, without a word of who asks: for messages."""
        return f"{self.socket or f'{self.host}:{self.port}'}/{self.database}"

    def __repr__(self) -> str:
        return f"MysqlUrl({self.place!r})"


def read_mysql_url(text: str) -> MysqlUrl:
    """Reads such a URL; user, password, host and options may be percent-encoded.

    Raises: ValueError that says what is wrong.
    """
    try:
        parts = urlsplit(text)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        # Its text may quote the password, where a `/` in that is not encoded.
        raise ValueError(f"host and port cannot be read; {_WANTED}; encode / : @ in a password") from None
    if parts.scheme != "mysql":
        raise ValueError(f"it is no mysql: URL; {_WANTED}")
    if parts.fragment or not port:
        raise ValueError(f"a # or port 0 stands in it; {_WANTED}; encode / : @ # in a password")
    options = _options(parts.query)
    host = unquote(parts.hostname or "")
    if bool(host) == bool(options.get("socket")):
        raise ValueError("it wants either a host or ?socket=PATH, not both")
    if not parts.username:
        raise ValueError(f"no user is named; {_WANTED}")
    database = parts.path.removeprefix("/")
    if not _DATABASE(database):
        raise ValueError(f"no database is named; {_WANTED}, DATABASE being 1 to 64 of A-Za-z0-9_$-")
    user, password = unquote(parts.username), unquote(parts.password or "")
    return MysqlUrl(host=host, port=port, user=user, password=password, database=database, **options)


def _options(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if set(options) - set(_OPTIONS):
        # Which one is not said: it may be the end of a password with a ? in it.
        raise ValueError(f"an option is not known; there are {', '.join(_OPTIONS)}")
    if len(pairs) != len(options):
        raise ValueError("an option stands there twice")
    if not all(options.values()):
        raise ValueError("an option has no value")
    if options.get("ssl_verify", "host") not in ("host", "ca"):
        raise ValueError("ssl_verify is neither host nor ca")
    if "socket" in options and len(options) > 1:
        raise ValueError("over a Unix socket there is no TLS: socket= stands alone")
    if "ssl_ca" not in options and {"ssl_cert", "ssl_key", "ssl_verify"} & set(options):
        raise ValueError("TLS wants ssl_ca, the file of certificates that vouch for the server's")
    if "ssl_key" in options and "ssl_cert" not in options:
        raise ValueError("ssl_key wants ssl_cert beside it")
    return options
