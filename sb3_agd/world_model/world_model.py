"""The diffusion world model: fitting on real segments and imagining new ones."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_agd.world_model.denoisers import DENOISERS, TerminationClassifier, is_autoregressive
from sb3_agd.world_model.guides import Critic, Guide
from sb3_agd.world_model.normalizer import Normalizer
from sb3_agd.world_model.samplers import PATHS, sample
from sb3_agd.world_model.segments import Segments, SegmentSource, mask_after_termination

# Actions at imagined states, both in raw units: states (B, n, observation_dim), and which n steps of the segment they
# belong to -> (B, n, action_dim)
Policy = Callable[[th.Tensor, slice], th.Tensor]
# Terminal transitions: (N, observation_dim), (N, action_dim), (N, observation_dim) -> (N,) boolean, in raw units
TerminationFn = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

MAX_GRAD_NORM = 1.0
# Steps that the recurrent denoiser predicts open loop in training before it is reset to the true state. Many teach it to live
# with its own errors, few to predict the next state and reward
OPEN_LOOP_LENGTH = 4
# While there are few updates, n of them, the decay of the running mean of the weights is n / (n + EMA_WARMUP)
EMA_WARMUP = 10
# Additional terminal transitions per segment in each update
TERMINAL_SHARE = 0.25
# Of the termination classifier: it is shown the same few terminal transitions again and again, and would learn them by heart
TERMINATION_WEIGHT_DECAY = 1.0


def check_integer(name: str, value: Any, minimum: int) -> None:
    """
    :param name: Name of an argument
    :param value: Its value
    :param minimum: Its lowest valid value
    :raises ValueError: If the value is not an integer of at least the minimum
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, not {value!r}")


def check_number(name: str, value: Any, minimum: float, below: float = math.inf) -> None:
    """
    :param name: Name of an argument
    :param value: Its value
    :param minimum: Its lowest valid value
    :param below: What it must be lower than
    :raises ValueError: If the value is not a number in this range
    """
    if not isinstance(value, (int, float, np.number)) or not minimum <= value < below:
        expected = (
            f"number of at least {minimum} and below {below}" if below < math.inf else f"finite number of at least {minimum}"
        )
        raise ValueError(f"`{name}` must be a {expected}, not {value!r}")


def check_arguments(arguments: dict[str, Any]) -> None:
    """
    Check arguments of :class:`DiffusionWorldModel` before one is built. Those that are not given are not checked.

    :param arguments: Arguments by name
    :raises ValueError: If one is invalid
    """
    for name in ("horizon", "n_denoising_steps", "width", "depth"):
        check_integer(name, arguments.get(name, 1), 1)
    check_number("ema_decay", arguments.get("ema_decay", 0), 0, below=1)
    check_number("learning_rate", arguments.get("learning_rate", 0), 0)
    network = arguments.get("network", nn.Module)
    denoiser = DENOISERS.get(network) if isinstance(network, str) else network
    if not (isinstance(denoiser, type) and issubclass(denoiser, nn.Module)):
        raise ValueError(f"`network` must be one of {sorted(DENOISERS)} or a subclass of nn.Module, not {network!r}")
    sampler = arguments.get("sampler", next(iter(PATHS)))
    if not isinstance(sampler, str) or sampler not in PATHS:
        raise ValueError(f"`sampler` must be one of {sorted(PATHS)}, not {sampler!r}")
    termination_fn = arguments.get("termination_fn")
    if termination_fn is not None and not callable(termination_fn):
        raise ValueError(f"`termination_fn` must be callable, not {termination_fn!r}")


def copied(state: Any) -> Any:
    """
    :param state: What ``state_dict`` returns
    :return: The same with copies of the tensors, in a tenth of the time of ``copy.deepcopy``
    """
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    return state.clone() if isinstance(state, th.Tensor) else state


@contextmanager
def seeded_global_stream(seed: int, device: th.device) -> Iterator[None]:
    """
    Within, PyTorch's global stream begins with a seed; afterwards it is what it was.

    :param seed: The seed
    :param device: Whose stream it is, besides that of the CPU
    """
    on_gpu = device.type == "cuda"
    with th.random.fork_rng(devices=[device] if on_gpu else []):
        # Not `th.manual_seed`, which seeds all GPUs
        th.default_generator.manual_seed(seed)
        if on_gpu:
            with th.cuda.device(device):
                th.cuda.manual_seed(seed)
        yield


def check_can_move(n_denoising_steps: int) -> None:
    """
    :param n_denoising_steps: Number of denoising steps
    :raises ValueError: If there is none in which a guide could move states
    """
    if n_denoising_steps == 1:
        raise ValueError(
            "`n_denoising_steps` must be at least 2 with `n_candidates=1`: the guide moves states at each step but the last"
        )


class DiffusionWorldModel(nn.Module):
    """
    Diffusion model of trajectory segments: next states and rewards of ``horizon`` steps, given the start state and
    the actions, all denoised together (arXiv 2604.09035, arXiv 2312.08533). Terminations come from a classifier of
    single transitions.

    It works on flat vectors in raw units and standardises them itself.

    :param observation_dim: Dimension of a state
    :param action_dim: Dimension of an action
    :param horizon: Number of transitions of a segment. In training, the recurrent network is reset to the true state
        every ``gcd(4, horizon)`` steps
    :param sampler: Path and sampler: ``"flow"`` (flow matching), ``"ddim"`` or ``"ddpm"`` (cosine path, without or
        with fresh noise)
    :param n_denoising_steps: Number of calls of the denoiser per segment
    :param network: ``"recurrent"`` (causal, weights shared over time), ``"mlp"`` (PolyGRAD's residual network), or a
        subclass of ``nn.Module`` of your own with the constructor and ``forward`` of :class:`ResidualMLPDenoiser`
    :param width: Units of each hidden layer of the denoiser
    :param depth: Number of hidden layers (recurrent) or residual blocks (mlp)
    :param learning_rate: Learning rate of AdamW, whose weight decay is that of the termination classifier alone
    :param ema_decay: Decay per update of the running mean of the weights, which imagination uses
    :param termination_fn: The true rule of termination, in place of the classifier, where it is known. It gets numpy
        arrays ``(observations, actions, next_observations)`` with one row per transition and returns one boolean per
        row
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
        width: int = 128,
        depth: int = 2,
        learning_rate: float = 3e-3,
        ema_decay: float = 0.95,
        termination_fn: TerminationFn | None = None,
        seed: int | None = None,
    ):
        # First of all, while there are no other local variables
        check_arguments(dict(locals()))
        super().__init__()
        denoiser = DENOISERS[network] if isinstance(network, str) else network
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.horizon = horizon
        self.n_denoising_steps = n_denoising_steps
        self.ema_decay = ema_decay
        self.termination_fn = termination_fn
        self.path = PATHS[sampler]()
        # Lengths of the guide's shifts in the last imagination, one for each reverse step
        self._guidance_lengths: list[th.Tensor] = []
        self.observation_normalizer = Normalizer(observation_dim)
        self.action_normalizer = Normalizer(action_dim)
        self.reward_normalizer = Normalizer(1)
        # Float buffers: SB3 treats all saved parameters as floats
        self.register_buffer("n_terminations", th.zeros(()))
        self.register_buffer("n_updates", th.zeros(()))
        # Whether `n_terminations` is positive, or a rule is known: to ask the buffer is to wait for a GPU
        self._may_end = termination_fn is not None
        # Initialisation draws from the global stream, which belongs to the agent
        with seeded_global_stream(np.random.SeedSequence(seed).generate_state(1)[0].item(), th.device("cpu")):
            self.networks = nn.ModuleDict(
                {
                    "denoiser": denoiser(observation_dim, action_dim, horizon, width, depth),
                    "termination": TerminationClassifier(observation_dim, action_dim),
                }
            )
        # Never in training mode: these are for imagination alone
        self.ema_networks = copy.deepcopy(self.networks).requires_grad_(False).eval()
        classifier = list(self.networks["termination"].parameters())
        weights = [parameter for parameter in classifier if parameter.ndim > 1]
        biases = [parameter for parameter in classifier if parameter.ndim <= 1]
        undecayed = [*self.networks["denoiser"].parameters(), *biases]
        self.optimizer = th.optim.AdamW(
            [{"params": undecayed, "weight_decay": 0.0}, {"params": weights, "weight_decay": TERMINATION_WEIGHT_DECAY}],
            lr=learning_rate,
            fused=True,
        )

    @property
    def device(self) -> th.device:
        """Device that the weights are on."""
        return self.n_terminations.device

    @property
    def is_trained(self) -> bool:
        """Whether it was ever trained."""
        return self.n_updates.item() > 0

    @property
    def guidance_norm(self) -> float:
        """Mean length of the guide's shifts of a segment in the last imagination, in standard deviations."""
        return th.stack(self._guidance_lengths).mean().item() if self._guidance_lengths else 0.0

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

    def _standardise(self, segments: Segments[th.Tensor]) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param segments: In raw units
        :return: States (B, H + 1, observation_dim), actions (B, H, action_dim), and the diffusion variable: next states
            and, last, rewards (B, H, observation_dim + 1)
        """
        states = self.observation_normalizer(segments.observations)
        rewards = self.reward_normalizer(segments.rewards[..., None])
        return states, self.action_normalizer(segments.actions), th.cat([states[:, 1:], rewards], dim=-1)

    def _inputs(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: In raw units, any that the networks are to start from
        :return: Standardised, within the observed range: users may imagine from anywhere
        """
        return self.observation_normalizer.clamp(self.observation_normalizer(observations))

    def denoising_loss(self, segments: Segments[th.Tensor], generator: th.Generator | None = None) -> th.Tensor:
        """
        Mean squared error of the clean estimate at random noise levels. The recurrent denoiser is reset to the true state
        every few steps, a compromise between teacher forcing (Williams and Zipser, 1989) and training open loop.

        :param segments: Real segments in raw units, on the model's device
        :param generator: Source of the noise
        :return: Scalar
        """
        states, actions, clean = self._standardise(segments)
        # More weight on high noise levels, where the states must come from the dynamics alone
        time = th.rand(len(segments), generator=generator, device=self.device).sqrt()
        noise = th.randn(clean.shape, generator=generator, device=self.device)
        before = self.observation_normalizer.clamp(states[:, :-1])
        denoiser = self.networks["denoiser"]
        # A network that is not recurrent sees whole segments
        length = math.gcd(OPEN_LOOP_LENGTH, self.horizon) if is_autoregressive(denoiser) else self.horizon
        noisy, taken = (
            steps.reshape(-1, length, steps.shape[-1]) for steps in (self.path.add_noise(clean, noise, time), actions)
        )
        starts, times = before[:, ::length].flatten(0, 1), time.repeat_interleave(self.horizon // length)
        estimate = denoiser(noisy, times, starts, taken).view_as(clean)
        return ((estimate - clean).square().mean(-1) * segments.mask).sum() / segments.mask.sum()

    def termination_loss(
        self, segments: Segments[th.Tensor], terminal: Segments[th.Tensor], termination_rate: float
    ) -> th.Tensor:
        """
        Cross-entropy of the terminations. Terminal transitions are too rare to learn from as they come, so many more
        of them are shown, and the log-odds are corrected for it: without the extra ones, they would be calibrated
        (King and Zeng, 2001, "Logistic regression in rare events data").

        :param segments: Real segments in raw units; their first transition is used
        :param terminal: Additional terminal transitions, segments of horizon 1 in raw units
        :param termination_rate: Share of terminal transitions among all
        :return: Scalar
        """
        targets = th.cat([segments.terminations[:, 0], terminal.terminations[:, 0]]).float()
        observations = self._inputs(th.cat([segments.observations[:, :2], terminal.observations]))
        actions = self.action_normalizer(th.cat([segments.actions[:, 0], terminal.actions[:, 0]]))
        logits = self.networks["termination"](observations[:, 0], actions, observations[:, 1])
        excess = 1 + len(terminal) / (len(segments) * termination_rate)
        return F.binary_cross_entropy_with_logits(logits + math.log(excess), targets)

    def fit(
        self,
        source: SegmentSource,
        gradient_steps: int,
        batch_size: int,
        learning_rate: float | None = None,
        generator: th.Generator | None = None,
        on_update: Callable[[], Any] | None = None,
    ) -> dict[str, float]:
        """
        Train on real segments.

        :param source: Where to draw real segments from
        :param gradient_steps: Number of updates
        :param batch_size: Number of segments of each update
        :param learning_rate: New learning rate, ``None`` to keep the present one
        :param generator: Source of the noise
        :param on_update: Called after each update
        :return: Mean ``denoising_loss`` and ``termination_loss`` over the updates; the latter is 0 until there is
            something to learn
        :raises FloatingPointError: If a loss or a weight turned into NaN or infinity; all weights, their means and the
            optimiser are what they were before then
        """
        before = copied(self.state_dict()), copied(self.optimizer.state_dict())
        if learning_rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        weights: list[th.Tensor] = list(self.networks.parameters())
        means: list[th.Tensor] = list(self.ema_networks.parameters())
        # Of batch normalisation, for example
        statistics = list(zip(self.ema_networks.buffers(), self.networks.buffers(), strict=True))
        total = th.zeros(2, device=self.device)
        learn_terminations = source.termination_rate > 0 and self.termination_fn is None
        n_terminal = max(1, round(TERMINAL_SHARE * batch_size))
        n_before = int(self.n_updates.item())
        try:
            # Layers such as dropout draw from PyTorch's global stream
            with nullcontext() if generator is None else seeded_global_stream(generator.initial_seed(), self.device):
                for n_updates in range(n_before + 1, n_before + gradient_steps + 1):
                    segments = self._on_device(source.segments(batch_size))
                    denoising_loss = self.denoising_loss(segments, generator)
                    termination_loss = th.zeros_like(denoising_loss)
                    if learn_terminations:
                        terminal = self._on_device(source.terminal_transitions(n_terminal))
                        termination_loss = self.termination_loss(segments, terminal, source.termination_rate)
                    self.optimizer.zero_grad()
                    (denoising_loss + termination_loss).backward()
                    nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
                    self.optimizer.step()
                    self.n_updates += 1
                    decay = min(self.ema_decay, n_updates / (n_updates + EMA_WARMUP))
                    with th.no_grad():
                        th._foreach_lerp_(means, weights, 1 - decay)
                        for mean, buffer in statistics:
                            mean.copy_(buffer)
                    total += th.stack([denoising_loss.detach(), termination_loss.detach()])
                    if on_update is not None:
                        on_update()
        finally:
            # Also after an interrupt. A gradient that is not finite makes all weights so
            diverged = not (total.isfinite().all() and all(tensor.isfinite().all() for tensor in weights))
            if diverged:
                weights_before, optimizer_before = before
                self.load_state_dict(weights_before)
                self.optimizer.load_state_dict(optimizer_before)
        if diverged:
            raise FloatingPointError("The loss or the weights of the world model turned into NaN or infinity")
        denoising, termination = (total / max(gradient_steps, 1)).tolist()
        return {"denoising_loss": denoising, "termination_loss": termination}

    @th.no_grad()
    def imagine(
        self,
        observations: th.Tensor,
        policy: Policy,
        guide: Guide | None = None,
        critic: Critic | None = None,
        guidance_scale: float = 0.0,
        generator: th.Generator | None = None,
        n_candidates: int = 1,
    ) -> Segments[th.Tensor]:
        """
        Imagine one segment from each start state in one pass of reverse diffusion.

        The policy is asked anew at every reverse step, at the clean estimate of the states: by the recurrent denoiser
        step by step on its way, otherwise for all steps at the estimate of the reverse step before. Its noise should be
        the same at each call: then the actions returned are exact samples of the policy at the states returned.

        :param observations: Start states in raw units, shape (B, observation_dim); they are returned untouched
        :param policy: Actions at imagined states, both in raw units
        :param guide: What to steer the segments towards, ``None`` for no guidance
        :param critic: The critic that the guide consults
        :param guidance_scale: Strength of the guidance
        :param generator: Source of all noise
        :param n_candidates: Number of consecutive start states that are copies of one another. Their segments share the noise
            of the world: they differ by their actions alone, so that one can be chosen for these and not for its luck
        :return: Segments in raw units
        :raises ValueError: If the scale is negative or not finite, a guide has no critic to consult or no denoising step to
            guide, or the number of start states is no multiple of that of particles
        """
        check_number("guidance_scale", guidance_scale, 0)
        if guide is not None and critic is None:
            raise ValueError("`critic` must be given with a `guide`")
        if guide is not None and guidance_scale > 0:
            check_can_move(self.n_denoising_steps)
        if n_candidates < 1 or len(observations) % n_candidates > 0:
            raise ValueError(f"`n_candidates` {n_candidates} must divide the number of start states, {len(observations)}")
        start = self._inputs(observations)
        whole = slice(0, self.horizon)
        denoiser = self.ema_networks["denoiser"]
        taken = observations.new_empty(len(observations), self.horizon, self.action_dim)
        self._guidance_lengths = []
        normalizer = self.observation_normalizer
        # Once for all states, in place of `normalizer.clamp` for each
        low, high = normalizer.bounds
        estimate: th.Tensor | None = None

        def states() -> th.Tensor:
            return self._raw_states(observations, estimate)

        def act(standardised: th.Tensor, steps: slice) -> th.Tensor:
            reached = normalizer.inverse(standardised.clamp(low, high))
            if steps.start == 0:
                # Neither rounded nor clamped
                reached[:, 0] = observations
            taken[:, steps] = policy(reached, steps)
            return self.action_normalizer(taken[:, steps])

        def denoise(noisy: th.Tensor, time: float) -> th.Tensor:
            nonlocal estimate
            level = th.full((len(noisy),), time, device=noisy.device)
            actions = act if is_autoregressive(denoiser) else self.action_normalizer(policy(states()[:, :-1], whole))
            estimate = self._clamp(denoiser(noisy, level, start, actions))
            return estimate

        def guidance(clean: th.Tensor, weight: float) -> th.Tensor:
            nonlocal estimate
            assert guide is not None and critic is not None
            actions = policy(states()[:, :-1], whole)
            with th.enable_grad():
                leaf = clean.detach().requires_grad_()
                objective = guide.checked_objective(self._estimated_segments(observations, leaf, actions), critic)
                if not objective.requires_grad:
                    raise ValueError(
                        f"The objective of {type(guide).__name__} depends on neither observations nor rewards, so there is "
                        "nothing to move. Select among several segments instead: `guidance_mode=\"select\"`"
                    )
                (gradient,) = th.autograd.grad(objective.sum(), leaf)
            # The margin around the observed range is also the limit of what a guide may ask for
            estimate = self._clamp(clean + guidance_scale * weight * gradient)
            self._guidance_lengths.append((estimate - clean).flatten(1).norm(dim=1).mean())
            return estimate

        def draw(distribution: Callable[..., th.Tensor], *shape: int) -> th.Tensor:
            shape = (len(observations) // n_candidates, *shape)
            return distribution(shape, generator=generator, device=observations.device).repeat_interleave(n_candidates, dim=0)

        move = guidance if guide is not None and guidance_scale > 0 else None
        noise = draw(th.randn, self.horizon, self.observation_dim + 1)
        estimate = sample(self.path, denoise, noise, self.n_denoising_steps, generator, move, n_candidates)
        imagined = states()
        # The last pass along the segment led to these very states, and asked the policy there
        actions = taken if is_autoregressive(denoiser) else policy(imagined[:, :-1], whole)
        probabilities = self._termination_probabilities(imagined, actions)
        terminations = draw(th.rand, self.horizon) < probabilities
        return Segments(
            observations=imagined,
            actions=actions,
            rewards=self._raw_rewards(estimate),
            terminations=terminations,
            mask=mask_after_termination(terminations),
        )

    def predict(
        self, observations: th.Tensor, actions: th.Tensor, generator: th.Generator | None = None
    ) -> Segments[th.Tensor]:
        """
        Imagine what follows given actions.

        :param observations: Start states in raw units, shape (B, observation_dim)
        :param actions: In raw units, shape (B, H, action_dim)
        :param generator: Source of all noise
        :return: Segments in raw units
        """
        return self.imagine(observations, lambda _, steps: actions[:, steps], generator=generator)

    def _clamp(self, clean: th.Tensor) -> th.Tensor:
        """
        :param clean: Standardised next states and, last, rewards, shape (B, H, observation_dim + 1)
        :return: The same, within the observed range plus a margin
        """
        pairs = zip(self.observation_normalizer.bounds, self.reward_normalizer.bounds, strict=True)
        low, high = (th.cat(pair) for pair in pairs)
        return clean.clamp(low, high)

    def _raw_states(self, start: th.Tensor, clean: th.Tensor | None) -> th.Tensor:
        """
        :param start: Start states in raw units, shape (B, observation_dim)
        :param clean: Standardised next states and, last, rewards, shape (B, H, observation_dim + 1); ``None`` for an estimate
            before there is any: the start state stays
        :return: States in raw units with the start state first, shape (B, H + 1, observation_dim)
        """
        if clean is None:
            return start[:, None].expand(-1, self.horizon + 1, -1)
        return th.cat([start[:, None], self.observation_normalizer.inverse(clean[..., :-1])], dim=1)

    def _raw_rewards(self, clean: th.Tensor) -> th.Tensor:
        """
        :param clean: Standardised next states and, last, rewards, shape (B, H, observation_dim + 1)
        :return: Rewards in raw units, shape (B, H)
        """
        return self.reward_normalizer.inverse(clean[..., -1:]).squeeze(-1)

    def _estimated_segments(self, start: th.Tensor, clean: th.Tensor, actions: th.Tensor) -> Segments[th.Tensor]:
        """
        Segments of a clean estimate as a guide sees them: the likelier outcome counts as the termination.

        :param start: Start states in raw units, shape (B, observation_dim)
        :param clean: Standardised next states and, last, rewards, shape (B, H, observation_dim + 1)
        :param actions: In raw units, shape (B, H, action_dim)
        :return: Segments in raw units, differentiable in the clean estimate
        """
        states = self._raw_states(start, clean)
        terminations = self._termination_probabilities(states.detach(), actions) > 0.5
        return Segments(states, actions, self._raw_rewards(clean), terminations, mask_after_termination(terminations))

    @th.no_grad()
    def _termination_probabilities(self, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param states: In raw units, shape (B, H + 1, observation_dim)
        :param actions: In raw units, shape (B, H, action_dim)
        :return: Probability that each transition is terminal, shape (B, H)
        """
        # What was never seen is not imagined: rare false alarms would cut the returns of endless tasks
        if not self._may_end:
            return states.new_zeros(actions.shape[:2])
        before, after = states[:, :-1], states[:, 1:]
        if self.termination_fn is not None:
            rows = [array.reshape(-1, array.shape[-1]).cpu().numpy() for array in (before, actions, after)]
            outcome = np.asarray(self.termination_fn(*rows))
            if outcome.shape != (len(rows[0]),):
                raise ValueError(
                    f"`termination_fn` must return one boolean per row, shape {(len(rows[0]),)}, not {outcome.shape}"
                )
            return th.as_tensor(outcome, dtype=states.dtype, device=states.device).view(actions.shape[:2])
        actions = self.action_normalizer(actions)
        return self.ema_networks["termination"](self._inputs(before), actions, self._inputs(after)).sigmoid()

    def _on_device(self, segments: Segments[th.Tensor]) -> Segments[th.Tensor]:
        """
        :param segments: Segments anywhere
        :return: The same on the model's device
        """
        return segments.map(lambda array: array.to(self.device))

    def prediction_error(self, segments: Segments[th.Tensor], generator: th.Generator | None = None) -> dict[str, th.Tensor]:
        """
        Compare real segments with what the model makes of their start states and actions.

        :param segments: Real segments in raw units
        :param generator: Source of the noise
        :return: See :meth:`compare`
        """
        segments = self._on_device(segments)
        return self.compare(self.predict(segments.observations[:, 0], segments.actions, generator), segments)

    def compare(self, imagined: Segments[th.Tensor], real: Segments[th.Tensor]) -> dict[str, th.Tensor]:
        """
        Errors of imagined segments after each step, in standard deviations of the data, and how often episodes end.

        :param imagined: Segments in raw units
        :param real: What really happens after the same actions from the same start states; its mask counts
        :return: Root mean squared errors, each of shape (H,): ``states``, ``persistence`` (of the start state kept),
            ``rewards``, ``mean_reward`` (of the mean reward of the data in place of an imagined one); and
            ``imagined_terminations`` and ``real_terminations``, rates per transition, scalars. NaN where nothing is left to
            compare
        """
        states, _, happened = self._standardise(real)
        _, _, predicted = self._standardise(imagined)

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
