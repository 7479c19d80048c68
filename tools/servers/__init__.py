"""Real caches, an origin, a database and a Redis, each started privately.

Each has a folder of its own and a free port, and is stopped at the end.

Plain classes without pytest, for tests, the bench and the demo alike:

    with Origin() as origin, Varnish(origin.address) as varnish:
        ... varnish.address ...

Each is up when `start()` (or `with`) returns, and gone, with its folder, when `stop()` returns.
"""

from tools.servers.agent import Agent
from tools.servers.ats import TrafficServer
from tools.servers.errors import ServerFailed
from tools.servers.mariadb import MariaDb
from tools.servers.nginx import Nginx
from tools.servers.origin import Origin
from tools.servers.redis import RedisServer
from tools.servers.squid import Squid
from tools.servers.varnish import Varnish
from tools.servers.waiting import wait_until

__all__ = [
    "Agent",
    "MariaDb",
    "Nginx",
    "Origin",
    "RedisServer",
    "ServerFailed",
    "Squid",
    "TrafficServer",
    "Varnish",
    "wait_until",
]
