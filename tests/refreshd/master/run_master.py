"""`python -m tests.refreshd.master.run_master --config FILE`: the real program with fake workers.

$FAKE_TIMING has what differs from `Timing()`, as JSON.
"""

import json
import os
import sys

from refreshd.__main__ import main
from refreshd.config import Config
from refreshd.config_file import ConfigFile
from refreshd.master.master import Master
from refreshd.master.processes import Timing
from refreshd.master.reexec import Saved


def make(config: Config, file: ConfigFile, saved: Saved | None) -> Master:
    timing = Timing(**json.loads(os.environ["FAKE_TIMING"]))
    return Master(config, file, saved, worker_module="tests.refreshd.master.fake_worker", timing=timing)


if __name__ == "__main__":
    sys.exit(main(make_master=make))
