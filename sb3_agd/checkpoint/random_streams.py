"""The global random generators of Python, numpy and PyTorch, which environments and SB3 draw from."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th


def seed_of_global_streams() -> int:
    """
    :return: A seed that is a function of the states of numpy's and PyTorch's global generators, which do not change
    """
    _, keys, position, *_ = np.random.get_state()
    content = np.asarray(keys).tobytes() + str(position).encode() + th.get_rng_state().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:4], "big")


@contextmanager
def untouched_global_streams() -> Iterator[None]:
    """Restore the global generators (PyTorch's on the CPU) at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with th.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
