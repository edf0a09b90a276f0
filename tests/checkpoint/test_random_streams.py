"""The global random generators of Python, numpy and PyTorch."""

import random

import numpy as np
import torch as th

from sb3_agd.checkpoint.random_streams import seed_of_global_streams, untouched_global_streams


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.random(), th.rand(()).item()


def set_seeds(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    th.manual_seed(seed)


def test_draws_within_the_context_do_not_change_the_global_generators() -> None:
    set_seeds(0)
    expected = draw()
    set_seeds(0)
    with untouched_global_streams():
        assert draw() == expected
        draw()
    assert draw() == expected


def test_global_generators_are_restored_after_an_error() -> None:
    set_seeds(0)
    expected = draw()
    set_seeds(0)
    try:
        with untouched_global_streams():
            draw()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert draw() == expected


def test_seed_is_a_function_of_the_global_generators_and_draws_nothing() -> None:
    set_seeds(0)
    expected = draw()
    set_seeds(0)
    seed = seed_of_global_streams()
    assert seed == seed_of_global_streams()
    assert draw() == expected
    # After draws from either generator it is another one
    after = {seed_of_global_streams()}
    np.random.random()
    after.add(seed_of_global_streams())
    th.rand(())
    after.add(seed_of_global_streams())
    assert len(after | {seed}) == 4
