"""The search space of AGDPPO's settings."""

import inspect

import optuna
import rl_zoo3
from stable_baselines3 import PPO

from sb3_agd import AGDPPO
from sb3_agd.zoo import register
from sb3_agd.zoo.search_space import sample_agdppo_params

register()


def test_sampled_settings_are_plain_arguments_of_the_algorithm() -> None:
    arguments = inspect.signature(AGDPPO).parameters
    own = set(arguments) - set(inspect.signature(PPO).parameters)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        sampled = sample_agdppo_params(trial, 3, 1, {})
        assert set(sampled) <= set(arguments)
        assert {name: value for name, value in trial.params.items() if name in own} == {
            name: value for name, value in sampled.items() if name in own
        }
        assert rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER["agdppo"](trial.params) == sampled
        AGDPPO("MlpPolicy", "Pendulum-v1", device="cpu", **sampled)
