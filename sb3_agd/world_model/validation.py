"""Checks of arguments. Each error names the argument and what it may be."""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import nn

from sb3_agd.world_model.denoisers import DENOISERS
from sb3_agd.world_model.samplers import SAMPLERS


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
        limit = f" and below {below}" if below < math.inf else ""
        raise ValueError(f"`{name}` must be a finite number of at least {minimum}{limit}, not {value!r}")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise a ``ValueError`` if the value of the argument with that name is none of the choices, which are text."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {[*choices]}, not {value!r}")


def check_network(network: Any, network_kwargs: Any) -> None:
    """
    :param network: Name of a network or a class
    :param network_kwargs: Its keyword arguments, ``None`` for none
    :raises ValueError: If there is no such network, or it does not take these arguments
    """
    denoiser = DENOISERS.get(network) if isinstance(network, str) else network
    if not (isinstance(denoiser, type) and issubclass(denoiser, nn.Module)):
        raise ValueError(f"`network` must be one of {sorted(DENOISERS)} or a subclass of nn.Module, not {network!r}")
    network_kwargs = {} if network_kwargs is None else network_kwargs
    if not isinstance(network_kwargs, dict):
        raise ValueError(f"`network_kwargs` must be a dictionary, not {network_kwargs!r}")
    try:
        inspect.signature(denoiser).bind("observation_dim", "action_dim", "horizon", **network_kwargs)
    except TypeError as error:
        raise ValueError(
            f"`network_kwargs` {network_kwargs} do not fit the network {denoiser.__name__}, which is built as "
            f"{denoiser.__name__}(observation_dim, action_dim, horizon, **network_kwargs): {error}"
        ) from None
    if denoiser in DENOISERS.values():
        for name, value in network_kwargs.items():
            check_integer(f"network_kwargs['{name}']", value, 1)


def check_arguments(arguments: dict[str, Any]) -> None:
    """
    Check arguments of :class:`DiffusionWorldModel` before one is built. Those that are not given are not checked.

    :param arguments: Arguments by name
    :raises ValueError: If one is invalid
    """
    for name in ("horizon", "n_denoising_steps", "open_loop_length"):
        check_integer(name, arguments.get(name, 1), 1)
    check_number("ema_decay", arguments.get("ema_decay", 0), 0, below=1)
    check_number("learning_rate", arguments.get("learning_rate", 0), 0)
    check_network(arguments.get("network", "recurrent"), arguments.get("network_kwargs"))
    check_choice("sampler", arguments.get("sampler", "flow"), SAMPLERS)
    check_choice("noise_density", arguments.get("noise_density", "sampler"), ("sampler", "uniform"))
    check_choice("terminations", arguments.get("terminations", "classifier"), ("classifier", "denoised"))
    termination_fn = arguments.get("termination_fn")
    if termination_fn is not None and not callable(termination_fn):
        raise ValueError(f"`termination_fn` must be callable, not {termination_fn!r}")
    if termination_fn is not None and arguments.get("terminations") == "denoised":
        raise ValueError('`termination_fn` replaces learned terminations: give it without `terminations="denoised"`')
