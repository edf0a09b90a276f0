"""What ``-optimize`` varies for AGDPPO."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params


def sample_agdppo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample PPO's hyperparameters, in the zoo's encoding, and those of AGDPPO. The latter are arguments of the
    constructor as they are, so that ``--trial-id`` finds them again. Lower limits of ``batch_size`` and upper limits of
    ``n_steps`` are not the zoo's for PPO: with many imagined rows for each real one, they would make a trial last
    for days.

    :param trial: The trial
    :param n_actions: Number of actions (unused)
    :param n_envs: Number of environments (unused)
    :param additional_args: Settings of off-policy algorithms (unused)
    :return: Arguments of :class:`AGDPPO`
    """
    n_steps_pow = trial.suggest_int("n_steps_pow", 6, 11)
    batch_size_pow = trial.suggest_int("batch_size_pow", 6, 10)
    one_minus_gamma = trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    # Display true values
    trial.set_user_attr("gamma", 1 - one_minus_gamma)
    trial.set_user_attr("n_steps", 2**n_steps_pow)
    trial.set_user_attr("batch_size", 2**batch_size_pow)
    return convert_onpolicy_params(
        {
            "n_steps_pow": n_steps_pow,
            "batch_size_pow": batch_size_pow,
            "one_minus_gamma": one_minus_gamma,
            "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 0.0001, 0.1, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 0.002, log=True),
            "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.1, log=True),
            "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3, 0.4]),
            "n_epochs": trial.suggest_categorical("n_epochs", [1, 5, 10, 20]),
            "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 2),
            "net_arch": trial.suggest_categorical("net_arch", ["tiny", "small", "medium"]),
            "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
            "guidance": trial.suggest_categorical("guidance", ["sag", "eag", "reward", "none"]),
            "guidance_scale": trial.suggest_float("guidance_scale", 0.03, 3, log=True),
            "guidance_mode": trial.suggest_categorical("guidance_mode", ["select", "gradient"]),
            "n_candidates": trial.suggest_categorical("n_candidates", [2, 4, 8]),
            "horizon": trial.suggest_categorical("horizon", [1, 2, 4, 8, 16]),
            "synthetic_ratio": trial.suggest_categorical("synthetic_ratio", [1, 2, 4, 8, 16]),
            "real_data_ratio": trial.suggest_categorical("real_data_ratio", [0.0, 0.1, 0.2, 0.4]),
            "n_denoising_steps": trial.suggest_int("n_denoising_steps", 2, 4),
            "world_model_gradient_steps": trial.suggest_categorical("world_model_gradient_steps", [25, 50, 100, 200]),
            "world_model_learning_rate": trial.suggest_float("world_model_learning_rate", 3e-4, 1e-2, log=True),
        }
    )
