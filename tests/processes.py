"""What tests that start processes share, and tests that run commands in this one."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sb3_agd.zoo.cli import main

# Seconds to wait for what comes within a few on any machine that is not busy
PATIENCE = 600
SETTINGS = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "MUJOCO_GL": "egl", "HF_HUB_OFFLINE": "1"}


def wait_for(condition: Callable[[], Any]) -> Any:
    """Wait until something holds, and return it; what it is in the end if it never holds."""
    deadline = time.monotonic() + PATIENCE
    while not (outcome := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return outcome


def start(folder: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    """Start a command in a folder, in a process of its own, with further environment variables."""
    return subprocess.Popen(
        [sys.executable, "-m", "sb3_agd", *arguments],
        cwd=folder,
        env={**os.environ, **SETTINGS, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for a command that must succeed, and return what it wrote to stdout."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return out


def skip_where_nothing_is_drawn(env_id: str, errors: str) -> None:
    """Skip a test whose command failed to draw a task, if that cannot be drawn here by other means either."""
    probe = f"import gymnasium; env = gymnasium.make('{env_id}', render_mode='rgb_array'); env.reset(); env.render()"
    drawing = subprocess.run([sys.executable, "-c", probe], env={**os.environ, **SETTINGS}, capture_output=True, text=True)
    assert drawing.returncode != 0, errors
    pytest.skip(f"MuJoCo cannot render here: {drawing.stderr.splitlines()[-1]}")


def run_here(folder: Path, *arguments: str) -> str:
    """Run a command in a folder, in this process, which has everything imported, and return what it wrote to stdout."""
    handler = signal.getsignal(signal.SIGTERM)
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["sb3-agd", *arguments])
        try:
            main()
        finally:
            # Training handles it
            signal.signal(signal.SIGTERM, handler)
    return out.getvalue()
