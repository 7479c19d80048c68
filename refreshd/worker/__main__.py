"""`python -m refreshd.worker`: how the master starts a worker."""

import sys

from refreshd.worker.process import main

sys.exit(main())
