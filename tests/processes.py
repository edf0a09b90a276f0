"""What tests that start processes share."""

import time
from collections.abc import Callable
from typing import Any

# Seconds to wait for what comes within a few on any machine that is not busy
PATIENCE = 600
SETTINGS = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "MUJOCO_GL": "egl", "HF_HUB_OFFLINE": "1"}


def wait_for(condition: Callable[[], Any]) -> Any:
    """Wait until something holds, and return it; what it is in the end if it never holds."""
    deadline = time.monotonic() + PATIENCE
    while not (outcome := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return outcome
