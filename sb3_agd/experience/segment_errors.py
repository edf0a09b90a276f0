"""How far imagined segments are from real ones."""

import torch as th

from sb3_agd.world_model import DiffusionWorldModel, Segments


def segment_errors(
    world_model: DiffusionWorldModel, imagined: Segments[th.Tensor], real: Segments[th.Tensor]
) -> dict[str, th.Tensor]:
    """
    Errors of imagined segments after each step, in standard deviations of the data, and how often episodes end.

    :param world_model: The world model, for its statistics of the data
    :param imagined: Segments in raw units
    :param real: What really happens after the same actions from the same start states; its mask counts
    :return: Root mean squared errors, each of shape (H,): ``states``, ``persistence`` (of the start state kept),
        ``rewards``, ``mean_reward`` (of the mean reward of the data in place of an imagined one); and
        ``imagined_terminations`` and ``real_terminations``, rates per transition, scalars. NaN if nothing is left to
        compare
    """
    states, _, happened = world_model.standardise(real)
    _, _, predicted = world_model.standardise(imagined)

    def rms(difference: th.Tensor) -> th.Tensor:
        per_step = (difference.square().mean(-1) * real.mask).sum(0) / real.mask.sum(0)
        return per_step.sqrt()

    # Segments cut off by anything else than a termination say nothing about how long they would have gone on
    whole = real.mask.all(1) | real.terminations.any(1)
    return {
        "states": rms((predicted - happened)[..., :-1]),
        "persistence": rms(states[:, :1] - states[:, 1:]),
        "rewards": rms((predicted - happened)[..., -1:]),
        "mean_reward": rms(happened[..., -1:]),
        "imagined_terminations": imagined.terminations[whole][imagined.mask[whole]].float().mean(),
        "real_terminations": real.terminations[whole][real.mask[whole]].float().mean(),
    }
