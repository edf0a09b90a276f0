"""The diffusion world model: losses on real segments, and imagination of new ones."""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_agd.world_model.denoisers import DENOISERS, is_autoregressive
from sb3_agd.world_model.normalizer import Normalizer
from sb3_agd.world_model.samplers import SAMPLERS
from sb3_agd.world_model.segment_denoiser import Objective, Policy, SegmentDenoiser
from sb3_agd.world_model.segments import Segments, as_tensor
from sb3_agd.world_model.termination import TerminationClassifier, TerminationFn, absorbing, apply_rule, half_of
from sb3_agd.world_model.training import fit, make_optimizer, seeded_global_stream
from sb3_agd.world_model.validation import check_arguments, check_integer, check_number


class DiffusionWorldModel(nn.Module):
    """
    Diffusion model of trajectory segments: next states and rewards of ``horizon`` steps, given the start state and
    the actions, all denoised together (arXiv 2604.09035, arXiv 2312.08533). Terminations come from a classifier of
    single transitions, or are denoised as well.

    It works on flat vectors in raw units and standardises them itself.

    :param observation_dim: Dimension of a state
    :param action_dim: Dimension of an action
    :param horizon: Number of transitions of a segment. In training, the recurrent network is reset to the true state
        every ``gcd(open_loop_length, horizon)`` steps
    :param sampler: ``"flow"`` (flow matching), ``"heun"`` (flow matching with second-order steps), ``"ddim"`` or ``"ddpm"``
        (cosine schedule, without or with fresh noise)
    :param n_denoising_steps: Number of steps of the sampler
    :param network: ``"recurrent"`` (causal, weights shared over time), ``"mlp"`` (PolyGRAD's residual network), or a
        subclass of ``nn.Module`` of your own with the ``forward`` of :class:`ResidualMLPDenoiser`. It is built as
        ``network(observation_dim, action_dim, horizon, **network_kwargs)``
    :param network_kwargs: Keyword arguments of the network: ``width`` and ``depth`` for those of the package
    :param learning_rate: Learning rate of AdamW, whose weight decay is that of the termination classifier alone
    :param ema_decay: Decay per update of the running mean of the weights, which imagination uses
    :param open_loop_length: In training, the recurrent denoiser predicts so many steps from its own estimates before it is
        reset to the true state. With many it learns to correct its own errors, which suits deterministic tasks. In stochastic
        tasks, an estimate says less about what follows than the true state, and only 1 is right
    :param noise_density: Density of the noise levels in training: ``"sampler"``, with more weight on low levels the more steps
        the sampler has, or ``"uniform"`` in time, as in the paper
    :param termination_fn: The true rule of termination, in place of the classifier, where it is known. It gets numpy
        arrays ``(observations, actions, next_observations)`` with one row per transition and returns one boolean per
        row
    :param terminations: ``"classifier"``, or ``"denoised"`` with the states, as in the paper: each state of the network has
        one more dimension, 1 if it is terminal and -1 if not, and a transition is terminal where it comes out positive
    :param seed: Seed of the initial weights
    """

    n_terminations: th.Tensor
    n_updates: th.Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        horizon: int = 8,
        sampler: str = "flow",
        n_denoising_steps: int = 2,
        network: str | type[nn.Module] = "recurrent",
        network_kwargs: dict[str, Any] | None = None,
        learning_rate: float = 3e-3,
        ema_decay: float = 0.95,
        open_loop_length: int = 4,
        noise_density: str = "sampler",
        termination_fn: TerminationFn | None = None,
        terminations: str = "classifier",
        seed: int | None = None,
    ):
        # Before there are other local variables
        check_arguments(dict(locals()))
        super().__init__()
        denoiser = DENOISERS[network] if isinstance(network, str) else network
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.horizon = horizon
        self.n_denoising_steps = n_denoising_steps
        self.ema_decay = ema_decay
        self.open_loop_length = open_loop_length
        self.noise_density = noise_density
        self.termination_fn = termination_fn
        self.terminations = terminations
        # Further dimensions of the network's states, see `absorbing`. Their units are fixed: standardised, terminations would
        # be the larger the rarer they are, and another task for the network whenever their rate changes
        self.n_flags = int(terminations == "denoised")
        self.sampler, self.schedule = SAMPLERS[sampler]
        # Mean distance of the segments of the newest imagination from those that come from the same noise without the guide,
        # in standard deviations. A tensor, since reading its value would wait for a GPU
        self.guidance_norm = th.zeros(())
        self.observation_normalizer = Normalizer(observation_dim)
        self.action_normalizer = Normalizer(action_dim)
        self.reward_normalizer = Normalizer(1)
        # Float buffers: SB3 treats all saved parameters as floats
        self.register_buffer("n_terminations", th.zeros(()))
        self.register_buffer("n_updates", th.zeros(()))
        # Whether `n_terminations` is positive, or a rule is known. Reading the buffer would wait for a GPU
        self._may_end = termination_fn is not None
        # Initialisation draws from the global stream, which belongs to the agent
        with seeded_global_stream(np.random.SeedSequence(seed).generate_state(1)[0].item(), th.device("cpu")):
            self.networks = nn.ModuleDict(
                {
                    "denoiser": denoiser(observation_dim + self.n_flags, action_dim, horizon, **(network_kwargs or {})),
                    "termination": TerminationClassifier(observation_dim, action_dim),
                }
            )
        # For imagination only, so never in training mode
        self.ema_networks = copy.deepcopy(self.networks).requires_grad_(False).eval()
        self.optimizer = make_optimizer(self.networks, learning_rate)

    @property
    def device(self) -> th.device:
        """Device that the weights are on."""
        return self.n_terminations.device

    @property
    def is_trained(self) -> bool:
        """Whether it was ever trained."""
        return self.n_updates.item() > 0

    def observe(self, observations: th.Tensor, actions: th.Tensor, rewards: th.Tensor, terminations: th.Tensor) -> None:
        """
        Take new real transitions into the running statistics.

        :param observations: All states that they visit, shape (M, observation_dim): one more than there are transitions in
            each episode
        :param actions: Shape (N, action_dim)
        :param rewards: Shape (N,)
        :param terminations: Shape (N,)
        """
        self.observation_normalizer.update(observations.to(self.device))
        self.action_normalizer.update(actions.to(self.device))
        self.reward_normalizer.update(rewards.to(self.device)[:, None])
        self.n_terminations += terminations.sum().to(self.n_terminations)
        self._may_end = self._may_end or bool(terminations.any())

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See :class:`torch.nn.Module`."""
        outcome = super().load_state_dict(state_dict, *args, **kwargs)
        self._may_end = self.termination_fn is not None or self.n_terminations.item() > 0
        return outcome

    def standardise(self, segments: Segments[th.Tensor]) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param segments: In raw units
        :return: States (B, H + 1, observation_dim), actions (B, H, action_dim), and the diffusion variable without flags:
            next states and, last, rewards (B, H, observation_dim + 1)
        """
        states = self.observation_normalizer(segments.observations)
        rewards = self.reward_normalizer(segments.rewards[..., None])
        return states, self.action_normalizer(segments.actions), th.cat([states[:, 1:], rewards], dim=-1)

    def inputs(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: In raw units, any that the networks are to start from
        :return: Standardised and clamped to the observed range, since users may imagine from any state
        """
        return self.observation_normalizer.clamp(self.observation_normalizer(observations))

    def denoising_loss(self, segments: Segments[th.Tensor], generator: th.Generator | None = None) -> th.Tensor:
        """
        Mean squared error of the denoised segments at random noise levels. The recurrent denoiser is reset to the true state
        every few steps, a compromise between teacher forcing (Williams and Zipser, 1989) and training open loop.

        :param segments: Real segments in raw units, on the model's device
        :param generator: Source of the noise
        :return: Scalar
        """
        flags = segments.observations[..., :0]
        if self.terminations == "denoised":
            flags, segments = absorbing(segments)
        states, actions, data = self.standardise(segments)
        before = th.cat([self.observation_normalizer.clamp(states[:, :-1]), flags[:, :-1]], dim=-1)
        data = th.cat([data[..., :-1], flags[:, 1:], data[..., -1:]], dim=-1)
        # From the lowest noise level at which the sampler calls the denoiser (of two steps at least) to the highest. The more
        # steps there are, the more depends on low levels: uniform in the root of the time, or in the time itself
        in_root = self.noise_density == "sampler"
        lowest = 1 / max(2, self.n_denoising_steps) ** (0.5 if in_root else 1)
        level = lowest + (1 - lowest) * th.rand(len(segments), generator=generator, device=self.device)
        time = level.square() if in_root else level
        noise = th.randn(data.shape, generator=generator, device=self.device)
        denoiser = self.networks["denoiser"]
        # A network that is not recurrent sees whole segments
        length = math.gcd(self.open_loop_length, self.horizon) if is_autoregressive(denoiser) else self.horizon
        noisy, taken = (
            steps.reshape(-1, length, steps.shape[-1]) for steps in (self.schedule.add_noise(data, noise, time), actions)
        )
        starts, times = before[:, ::length].flatten(0, 1), time.repeat_interleave(self.horizon // length)
        estimate = denoiser(noisy, times, starts, taken).view_as(data)
        return ((estimate - data).square().mean(-1) * segments.mask).sum() / segments.mask.sum()

    def termination_loss(
        self, segments: Segments[th.Tensor], terminal: Segments[th.Tensor], termination_rate: float
    ) -> th.Tensor:
        """
        Cross-entropy of the terminations. The classifier is calibrated on the way.

        :param segments: Real segments in raw units; their first transition is used
        :param terminal: Additional terminal transitions, segments of horizon 1 in raw units
        :param termination_rate: Share of terminal transitions among all
        :return: Scalar
        """
        happened = th.cat([segments.terminations[:, 0], terminal.terminations[:, 0]])
        raw = th.cat([segments.observations[:, :2], terminal.observations])
        observations = self.inputs(raw)
        taken = th.cat([segments.actions[:, 0], terminal.actions[:, 0]])
        actions = self.action_normalizer(taken)
        classifier = self.networks["termination"]
        assert isinstance(classifier, TerminationClassifier)
        log_odds = classifier(observations[:, 0], actions, observations[:, 1])
        sample = happened, half_of(th.cat([raw.flatten(1), taken], dim=1)), len(segments), termination_rate
        classifier.calibrate(log_odds, *sample)
        return classifier.loss(log_odds, *sample)

    fit = fit

    @th.no_grad()
    def imagine(
        self,
        observations: th.Tensor | np.ndarray,
        policy: Policy,
        objective: Objective | None = None,
        guidance_scale: float = 0.0,
        generator: th.Generator | None = None,
        n_candidates: int = 1,
        horizon: int | None = None,
        guidance_weight: str = "calibrated",
    ) -> Segments[th.Tensor]:
        """
        Imagine one segment from each start state by reverse diffusion.

        Without guidance, an autoregressive network samples state by state: the policy is asked for each action at the state
        sampled before. Otherwise, it is asked anew at every step of the sampler, at the denoised states. Its noise should be
        the same at each call. Then the actions returned are exact samples of the policy at the states returned.

        :param observations: Start states in raw units, shape (B, observation_dim); they are returned unchanged
        :param policy: Actions at imagined states, both in raw units
        :param objective: What guidance raises, one number per segment: the denoised segments are moved along its gradient, as
            far as the world model leaves them uncertain. ``None`` for no guidance
        :param guidance_scale: Strength of the guidance: segments are reweighted by ``exp(guidance_scale * objective)``
        :param generator: Source of all noise
        :param n_candidates: Number of consecutive start states whose segments share the noise of the world. If they are
            copies of one state, their segments differ by their actions only
        :param horizon: Number of transitions, ``None`` for that of the training. Autoregressive networks imagine any number
        :param guidance_weight: ``"calibrated"``, or ``"sigma4"``: the denoised segments move by the gradient times the fourth
            power of the posterior standard deviation of the step, as in the paper's public code
        :return: Segments in raw units
        :raises ValueError: If the scale is negative or not finite, the start states have a wrong shape, their number is no
            multiple of ``n_candidates``, or the network cannot imagine this horizon
        """
        check_number("guidance_scale", guidance_scale, 0)
        observations, horizon = as_tensor(observations, self.device), self.check_horizon(horizon)
        if observations.dim() != 2 or observations.shape[1] != self.observation_dim:
            shape = tuple(observations.shape)
            raise ValueError(f"`observations` must have the shape (B, {self.observation_dim}), not {shape}")
        if n_candidates < 1 or len(observations) % n_candidates > 0:
            raise ValueError(f"`n_candidates` {n_candidates} must divide the number of start states, {len(observations)}")
        if generator is None:
            generator = th.Generator(observations.device).manual_seed(int(th.randint(2**62, ())))

        def draw(distribution: Callable[..., th.Tensor], *shape: int) -> th.Tensor:
            shape = (len(observations) // n_candidates, *shape)
            return distribution(shape, generator=generator, device=observations.device).repeat_interleave(n_candidates, dim=0)

        def draw_noise(n_transitions: int) -> th.Tensor:
            return draw(th.randn, n_transitions, self.observation_dim + self.n_flags + 1)

        def sample_whole(denoiser: SegmentDenoiser) -> th.Tensor:
            return self.sampler(denoiser, draw_noise(horizon), self.n_denoising_steps, partial(draw_noise, horizon))

        denoiser = SegmentDenoiser(self, observations, horizon, policy)
        self.guidance_norm = observations.new_zeros(())
        if objective is not None and guidance_scale > 0:
            before = generator.get_state()
            unguided = sample_whole(denoiser)
            # Once more, from the same noise
            generator.set_state(before)
            denoiser = SegmentDenoiser(self, observations, horizon, policy, objective, guidance_scale, guidance_weight)
            denoised = sample_whole(denoiser)
            self.guidance_norm = (denoised - unguided).flatten(1).norm(dim=1).mean()
        elif is_autoregressive(self.ema_networks["denoiser"]):
            denoised = denoiser.sample_state_by_state(self.sampler, self.n_denoising_steps, draw_noise)
        else:
            denoised = sample_whole(denoiser)
        return denoiser.finish(denoised, draw(th.rand, horizon))

    def predict(
        self,
        observations: th.Tensor | np.ndarray,
        actions: th.Tensor | np.ndarray,
        generator: th.Generator | None = None,
        n_candidates: int = 1,
    ) -> Segments[th.Tensor]:
        """
        Imagine what follows given actions, for example to plan.

        :param observations: Start states in raw units, shape (B, observation_dim)
        :param actions: In raw units, shape (B, H, action_dim), with the horizon H, see :meth:`imagine`
        :param generator: Source of all noise
        :param n_candidates: Number of consecutive segments that share the noise of the world
        :return: Segments in raw units
        :raises ValueError: If a shape is wrong, or the network cannot imagine this horizon
        """
        given = as_tensor(actions, self.device)
        if given.dim() != 3 or given.shape != (len(observations), given.shape[1], self.action_dim):
            raise ValueError(
                f"`actions` must have the shape ({len(observations)}, horizon, {self.action_dim}), not {tuple(given.shape)}"
            )

        def policy(_: th.Tensor, steps: slice) -> th.Tensor:
            return given[:, steps]

        return self.imagine(observations, policy, generator=generator, n_candidates=n_candidates, horizon=given.shape[1])

    def check_horizon(self, horizon: int | None) -> int:
        """
        :param horizon: Number of transitions to imagine, ``None`` for that of the training
        :return: The number
        :raises ValueError: If the network cannot imagine so many
        """
        if horizon is None:
            return self.horizon
        check_integer("horizon", horizon, 1)
        denoiser = self.networks["denoiser"]
        if horizon != self.horizon and not is_autoregressive(denoiser):
            raise ValueError(f"`horizon` must be {self.horizon} with the network {type(denoiser).__name__}, not {horizon}")
        return int(horizon)

    @th.no_grad()
    def termination_probabilities(self, states: th.Tensor, actions: th.Tensor, flags: th.Tensor | None = None) -> th.Tensor:
        """
        :param states: In raw units, shape (B, H + 1, observation_dim)
        :param actions: In raw units, shape (B, H, action_dim)
        :param flags: Denoised flags of the next states, shape (B, H, n_flags), needed if terminations are denoised
        :return: Probability that each transition is terminal, shape (B, H)
        """
        # In tasks that never end, rare false alarms would cut the returns
        if not self._may_end:
            return states.new_zeros(actions.shape[:2])
        if self.termination_fn is not None:
            return apply_rule(self.termination_fn, states, actions)
        if self.terminations == "denoised":
            assert flags is not None
            return (flags.squeeze(-1) > 0).to(states)
        classifier = self.ema_networks["termination"]
        assert isinstance(classifier, TerminationClassifier)
        observations = self.inputs(states)
        return classifier.probabilities(observations[:, :-1], self.action_normalizer(actions), observations[:, 1:])
