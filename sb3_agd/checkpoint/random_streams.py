"""The global random streams of python, numpy and PyTorch, which belong to the environments and to SB3."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th


def seed_of_global_streams() -> int:
    """
    :return: A seed that is the same where the global streams of numpy and PyTorch are, without drawing from them
    """
    _, keys, position, *_ = np.random.get_state()
    content = np.asarray(keys).tobytes() + str(position).encode() + th.get_rng_state().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big")


@contextmanager
def untouched_global_streams() -> Iterator[None]:
    """Whatever is drawn from the global streams within (PyTorch's on the CPU) leaves them as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with th.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
