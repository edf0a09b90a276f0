"""Whether a task is random and the world model is not: a comparison of transitions that start alike."""

import torch as th

from sb3_agd.experience.replay_buffer import Indices, ReplayBuffer
from sb3_agd.world_model import DiffusionWorldModel, Segments

# Newest transitions to look for neighbours in
N_CANDIDATES = 4096
# Two transitions are neighbours if the squared distance of their states and actions is at most this share of its mean. In a
# deterministic task, what follows differs little between them, however bad the world model is
MAX_DISTANCE = 0.005
# Fewer neighbours say nothing. In large spaces there are none
MIN_NEIGHBOURS = 32
# The world model misses randomness if imagined changes of neighbours differ by less than this share of what real ones do
MAX_IMAGINED_SHARE = 0.5
# Standard errors below the mean, so that a few jumps, such as contacts, are not enough
N_STANDARD_ERRORS = 3.0
# Share of the variance of changes from which missed randomness matters
MIN_MISSED_RANDOMNESS = 0.03
WARNING = (
    "The environment looks random or partially observed, and the world model misses it: real transitions from nearly the same "
    "state with nearly the same action differ more than imagined ones. If the spread of outcomes matters, use "
    '`sampler="heun", n_denoising_steps=16, world_model_kwargs={"open_loop_length": 1}`, which takes more time'
)


def missed_randomness(
    world_model: DiffusionWorldModel,
    replay_buffer: ReplayBuffer,
    indices: Indices,
    real: Segments[th.Tensor],
    imagined: Segments[th.Tensor],
    generator: th.Generator,
) -> th.Tensor:
    """
    Compare the changes of the state in two neighbouring transitions, real ones and imagined ones. Errors of the world model do
    not matter: in deterministic tasks, the real changes are almost the same.

    :param world_model: The world model
    :param replay_buffer: Real transitions
    :param indices: Environment indices and indices of the first transitions of the tested segments
    :param real: The tested segments, in raw units
    :param imagined: What the world model predicts for their start states and actions
    :param generator: Source of the noise
    :return: A lower bound of the share of the variance of changes that is random and that the world model misses, scalar. 0 if
        there are too few neighbours to say
    """
    nothing = th.zeros((), device=world_model.device)
    # Two of each environment at least: all of their episodes may just have ended
    candidates = replay_buffer.recent_transitions(max(N_CANDIDATES, 2 * replay_buffer.n_envs))
    if len(candidates[0]) == 0:
        return nothing
    pool = replay_buffer.segments(*candidates, 1).to(world_model.device)
    distances = th.cdist(_inputs(world_model, real), _inputs(world_model, pool)).square()
    limit = MAX_DISTANCE * distances.mean()
    itself = (indices[0][:, None] == candidates[0]) & (indices[1][:, None] == candidates[1])
    distances[th.from_numpy(itself).to(distances.device)] = th.inf
    nearest, neighbours = distances.min(1)
    is_near = nearest <= limit
    if is_near.sum() < MIN_NEIGHBOURS:
        return nothing
    chosen = neighbours[is_near].cpu().numpy()
    twins = replay_buffer.segments(candidates[0][chosen], candidates[1][chosen], world_model.horizon)
    twins = twins.to(world_model.device)
    imagined_twins = world_model.predict(twins.observations[:, 0], twins.actions, generator)

    def squared_difference(segments: Segments[th.Tensor], of_twins: Segments[th.Tensor]) -> th.Tensor:
        difference = _changes(world_model, segments)[is_near] - _changes(world_model, of_twins)
        return difference.square().sum(1)

    happened, predicted = squared_difference(real, twins), squared_difference(imagined, imagined_twins)
    if predicted.mean() >= MAX_IMAGINED_SHARE * happened.mean():
        return nothing
    # The mean squared difference of unrelated changes is twice their variance
    missed = (happened - predicted) / (2 * _changes(world_model, pool).var(0).sum())
    return missed.mean() - N_STANDARD_ERRORS * missed.std() / len(missed) ** 0.5


def _inputs(world_model: DiffusionWorldModel, segments: Segments[th.Tensor]) -> th.Tensor:
    """
    :param world_model: The world model
    :param segments: In raw units
    :return: Standardised first states and actions, shape (B, observation_dim + action_dim)
    """
    states, actions, _ = world_model.standardise(segments)
    return th.cat([states[:, 0], actions[:, 0]], dim=1)


def _changes(world_model: DiffusionWorldModel, segments: Segments[th.Tensor]) -> th.Tensor:
    """
    :param world_model: The world model
    :param segments: In raw units
    :return: Standardised change of the state in the first transition, shape (B, observation_dim)
    """
    states, _, _ = world_model.standardise(segments)
    return states[:, 1] - states[:, 0]
