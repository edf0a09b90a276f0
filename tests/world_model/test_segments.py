"""Segments and their mask."""

import torch as th

from sb3_agd.world_model.segments import mask_after_termination


def test_mask_is_true_up_to_and_including_the_first_termination() -> None:
    terminations = th.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=th.bool)
    expected = th.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=th.bool)
    assert th.equal(mask_after_termination(terminations), expected)
    assert (mask_after_termination(terminations.numpy()) == expected.numpy()).all()
