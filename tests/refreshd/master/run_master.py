"""`python -m tests.refreshd.master.run_master CONFIG TIMING`: the real master with fake workers."""

import json
import sys

from refreshd.__main__ import load, run
from refreshd.master.master import Master
from refreshd.master.slots import Timing

if __name__ == "__main__":
    timing = Timing(**json.loads(sys.argv[2]))
    sys.exit(
        run(
            load(sys.argv[1]),
            lambda config: Master(config, worker_module="tests.refreshd.master.fake_worker", timing=timing),
        )
    )
