"""Training of the world model: optimiser, running mean of the weights, and the loop that restores both after divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch as th
from torch import nn

from sb3_agd.world_model.segments import SegmentSource

if TYPE_CHECKING:
    from sb3_agd.world_model.world_model import DiffusionWorldModel

MAX_GRAD_NORM = 1.0
# During the first updates, n of them, the decay of the running mean of the weights is n / (n + EMA_WARMUP)
EMA_WARMUP = 10
# Additional terminal transitions per segment in each update
TERMINAL_SHARE = 0.25
# The termination classifier sees the same few terminal transitions many times. Without weight decay it would memorise them
TERMINATION_WEIGHT_DECAY = 1.0


def make_optimizer(networks: nn.ModuleDict, learning_rate: float) -> th.optim.AdamW:
    """
    :param networks: The denoiser and the termination classifier
    :param learning_rate: Learning rate
    :return: An optimiser whose weight decay is for the weight matrices of the classifier only
    """
    classifier = list(networks["termination"].parameters())
    weights = [parameter for parameter in classifier if parameter.ndim > 1]
    others = [*networks["denoiser"].parameters(), *(parameter for parameter in classifier if parameter.ndim <= 1)]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": weights, "weight_decay": TERMINATION_WEIGHT_DECAY}]
    return th.optim.AdamW(groups, lr=learning_rate, fused=True)


@th.no_grad()
def update_running_mean(mean: nn.Module, networks: nn.Module, n_updates: int, decay: float) -> None:
    """
    Update the running mean of the weights. ``torch.optim.swa_utils.AveragedModel`` counts its updates in a tensor on the
    GPU, and a decay that depends on it would have to wait for the GPU at each update.

    :param mean: Its parameters are the running mean; its buffers (of batch normalisation, for example) are copied
    :param networks: Networks after an update
    :param n_updates: Number of updates so far
    :param decay: Decay of the running mean per update, smaller during the first updates
    """
    decay = min(decay, n_updates / (n_updates + EMA_WARMUP))
    th._foreach_lerp_(list(mean.parameters()), list(networks.parameters()), 1 - decay)
    for copied, buffer in zip(mean.buffers(), networks.buffers(), strict=True):
        copied.copy_(buffer)


def fit(
    model: DiffusionWorldModel,
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
    :return: Mean ``denoising_loss`` and ``termination_loss`` over the updates; the latter is 0 until the classifier has one to
        learn
    :raises FloatingPointError: If a loss or a weight turned into NaN or infinity; all weights, their means and the
        optimiser are what they were before then
    """
    weights: list[th.Tensor] = list(model.networks.parameters())
    total = th.zeros(2, device=model.device)
    learn_terminations = source.termination_rate > 0 and model.terminations == "classifier" and model.termination_fn is None
    n_terminal = max(1, round(TERMINAL_SHARE * batch_size))
    n_before = int(model.n_updates.item())
    # Layers such as dropout draw from PyTorch's global stream
    stream = nullcontext() if generator is None else seeded_global_stream(generator.initial_seed(), model.device)
    with restored_if_diverged(model, total), stream:
        if learning_rate is not None:
            for group in model.optimizer.param_groups:
                group["lr"] = learning_rate
        for n_updates in range(n_before + 1, n_before + gradient_steps + 1):
            segments = source.segments(batch_size).to(model.device)
            denoising_loss = model.denoising_loss(segments, generator)
            termination_loss = th.zeros_like(denoising_loss)
            if learn_terminations:
                terminal = source.terminal_transitions(n_terminal).to(model.device)
                termination_loss = model.termination_loss(segments, terminal, source.termination_rate)
            model.optimizer.zero_grad()
            (denoising_loss + termination_loss).backward()
            nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
            model.optimizer.step()
            model.n_updates += 1
            update_running_mean(model.ema_networks, model.networks, n_updates, model.ema_decay)
            total += th.stack([denoising_loss.detach(), termination_loss.detach()])
            if on_update is not None:
                on_update()
    denoising, termination = (total / max(gradient_steps, 1)).tolist()
    return {"denoising_loss": denoising, "termination_loss": termination}


@contextmanager
def restored_if_diverged(model: DiffusionWorldModel, losses: th.Tensor) -> Iterator[None]:
    """
    If losses or weights are not finite afterwards, the model and its optimiser are what they were before. This also holds
    after an interrupt.

    :param model: The world model
    :param losses: Losses that are computed within
    :raises FloatingPointError: If losses or weights are not finite
    """
    weights_before, optimizer_before = copied(model.state_dict()), copied(model.optimizer.state_dict())
    try:
        yield
    finally:
        # One check at the end is enough: once a gradient is not finite, neither are the weights
        finite = all(weight.isfinite().all() for weight in model.networks.parameters())
        diverged = not (losses.isfinite().all() and finite)
        if diverged:
            model.load_state_dict(weights_before)
            model.optimizer.load_state_dict(optimizer_before)
    if diverged:
        raise FloatingPointError("The loss or the weights of the world model turned into NaN or infinity")


def copied(state: Any) -> Any:
    """Copy what ``state_dict`` returns, in a tenth of the time of ``copy.deepcopy``."""
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    return state.clone() if isinstance(state, th.Tensor) else state


@contextmanager
def seeded_global_stream(seed: int, device: th.device) -> Iterator[None]:
    """
    Seed PyTorch's global stream within, and restore it afterwards.

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
