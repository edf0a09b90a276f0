"""Actions of imagined segments as in PolyGRAD (arXiv 2312.08533): denoised with the states, by the score of the policy."""

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, SquashedDiagGaussianDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_agd.experience.space_codecs import Observations
from sb3_agd.imagination import ActionSampler
from sb3_agd.imagination.policy_adapter import FixedNoisePolicy, PolicyAdapter, action_parameters
from sb3_agd.world_model import DiffusionWorldModel
from sb3_agd.world_model.denoisers import DENOISERS
from sb3_agd.world_model.samplers import posterior_variance
from sb3_agd.world_model.validation import check_number

# Steps outside of this range do not approach the policy, or overshoot it
MIN_STEP, MAX_STEP = 1e-4, 1.0
# Actions stay within so many standard deviations of the policy
MAX_DEVIATIONS = 3.0


class PolicyScoreActions(ActionSampler):
    """
    Actions begin as noise. In each step of the sampler they move along the gradient of the policy's log-probability at the
    denoised states, get the noise of that step, and stay within three standard deviations of the policy::

        action <- action + step * std^2 * grad log pi(action | state) + noise

    ``step`` is tuned after each imagination that the policy learns from, so that actions have unit standard deviation once
    they are standardised by the policy's mean and standard deviation. For Gaussian policies, and networks that see whole
    segments (``network="mlp"``). In contrast to the default, actions are no exact samples of the policy.

    In PolyGRAD's public code, the gradient is not multiplied by ``std^2``, which only matters where the standard deviations of
    the dimensions differ, and the network sees the actions scaled down in noisy steps.

    :param step: Length of the step to begin with, between 0.0001 and 1: with 1, actions would jump to the mean of the policy
    :param tuning_rate: Change of the logarithm of the step per logarithm of the standard deviation, 0 to keep the step
    :raises ValueError: If an argument is invalid
    """

    def __init__(self, step: float = 0.3, tuning_rate: float = 0.1):
        check_number("step", step, MIN_STEP)
        if step > MAX_STEP:
            raise ValueError(f"`step` must be at most {MAX_STEP}, not {step!r}")
        check_number("tuning_rate", tuning_rate, 0)
        self.step = float(step)
        self.tuning_rate = float(tuning_rate)

    def check(self, model: OnPolicyAlgorithm, world_model_arguments: dict[str, Any]) -> None:
        distribution = model.policy.action_dist
        is_gaussian = isinstance(distribution, DiagGaussianDistribution)
        if not is_gaussian or isinstance(distribution, SquashedDiagGaussianDistribution):
            raise ValueError(
                "`action_sampler` PolicyScoreActions needs a Gaussian policy over a Box of actions (without gSDE), not "
                f"{type(distribution).__name__}"
            )
        network = world_model_arguments.get("network", "recurrent")
        network = DENOISERS[network] if isinstance(network, str) else network
        if getattr(network, "is_autoregressive", False):
            raise ValueError(
                "`action_sampler` PolicyScoreActions needs a network that sees whole segments: "
                '`world_model_kwargs={"network": "mlp"}`'
            )
        if world_model_arguments["n_denoising_steps"] < 2:
            raise ValueError(
                "`action_sampler` PolicyScoreActions needs `n_denoising_steps` of at least 2: the first step leaves actions "
                "as they are, noise"
            )

    def policy(
        self, agent: PolicyAdapter, n_segments: int, horizon: int, generator: th.Generator, world_model: DiffusionWorldModel
    ) -> FixedNoisePolicy:
        return ScoreStepPolicy(agent, n_segments, horizon, generator, world_model, self.step)

    def adapt(self, agent: PolicyAdapter, rows: RolloutBufferSamples) -> None:
        if len(rows.actions) > 0:
            # Too wide: longer steps towards the policy
            change = self.tuning_rate * math.log(max(standardised_deviation(agent, rows), 1e-3))
            self.step = min(max(self.step * math.exp(change), MIN_STEP), MAX_STEP)


def standardised_deviation(agent: PolicyAdapter, rows: RolloutBufferSamples) -> float:
    """
    :param agent: The agent, which has a Gaussian policy
    :param rows: Observations and actions with their log-probabilities
    :return: Root mean square of the actions' deviations from the policy's mean, in the policy's standard deviations
    """
    mean, std = action_parameters(agent.model.policy, rows.observations)
    return ((rows.actions - mean) / std).square().mean().sqrt().item()


class ScoreStepPolicy(FixedNoisePolicy):
    """
    The actions of one imagination.

    :param agent: The agent
    :param n_segments: Number of segments, B
    :param horizon: Number of transitions of a segment, H
    :param generator: Source of the noise
    :param world_model: The world model, for its noise schedule and the unit of actions
    :param step: Length of the step
    """

    def __init__(
        self,
        agent: PolicyAdapter,
        n_segments: int,
        horizon: int,
        generator: th.Generator,
        world_model: DiffusionWorldModel,
        step: float,
    ):
        super().__init__(agent, n_segments, horizon, generator)
        assert isinstance(agent.model.action_space, spaces.Box)
        self.world_model = world_model
        self.generator = generator
        self.step = step
        self._start = world_model.action_normalizer.inverse(self.noise)
        self._current = self._start
        # Standard deviation of the noise of the step that is due, in standard deviations of the data
        self._due: float | None = None
        self._time = math.inf

    def begin_step(self, time: float) -> None:
        """
        :param time: Time of the step of the sampler that begins, 1 at the start of a sample
        """
        if time == 1:
            self._current, self._due = self._start, None
        elif time != self._time:
            # The noise of the step that led here
            before = th.tensor(time + 1 / self.world_model.n_denoising_steps, dtype=th.float64).clamp(max=1)
            variance = posterior_variance(self.world_model.schedule, before, th.tensor(time, dtype=th.float64))
            self._due = math.sqrt(variance.item())
        self._time = time

    @th.no_grad()
    def sample(self, observations: Observations, steps: slice) -> th.Tensor:
        mean, std = action_parameters(self.agent.model.policy, observations)
        actions = self._current.flatten(0, 1)
        if self._time < 1:
            actions = mean + (actions - mean).clamp(-MAX_DEVIATIONS * std, MAX_DEVIATIONS * std)
        if self._due is not None:
            # The gradient is (mean - action) / std^2
            actions = actions + self.step * (mean - actions)
            noise = th.randn(actions.shape, generator=self.generator, device=actions.device)
            actions = actions + self._due * self.world_model.action_normalizer.scale * noise
            self._due = None
        self._current = actions.view(self._current.shape)
        return actions
