"""A world model that diverges is restored, and the policy is updated without it."""

import copy
import warnings

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from gymnasium import spaces
from logs import ImaginedRows
from stable_baselines3.common.callbacks import BaseCallback

from sb3_agd import AGDPPO


class Diverge(BaseCallback):
    """Poison a weight of the world model before some of the rollouts end."""

    def __init__(self, steps: set[int]):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        assert isinstance(self.model, AGDPPO)
        if self.num_timesteps in self.steps:
            self.weights_before = {name: value.clone() for name, value in self.model.world_model.state_dict().items()}
            self.poison = self.model.world_model.networks["denoiser"].reward.bias.register_hook(lambda grad: grad * th.nan)
        if self.num_timesteps - 32 in self.steps:
            self.poison.remove()
        return True


def test_a_world_model_that_diverges_is_restored_and_training_goes_on_with_real_data() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL)
    diverge, rows = Diverge({33, 97}), ImaginedRows()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(160, callback=[diverge, rows])
    assert len([warning for warning in caught if "last good weights are restored" in str(warning.message)]) == 1
    # The second and the fourth of five rollouts
    assert [count > 0 for count in rows.counts] == [True, False, True, False, True]
    assert all(tensor.isfinite().all() for tensor in model.policy.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in model.world_model.state_dict().values())


class Scramble(BaseCallback):
    """Put random numbers into the world model at the start of some of the rollouts."""

    def __init__(self, steps: set[int]):
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, AGDPPO)
        world_model = self.model.world_model
        if self.num_timesteps in self.steps:
            self.weights = copy.deepcopy(world_model.state_dict())
            with th.no_grad():
                for parameter in (*world_model.networks.parameters(), *world_model.ema_networks.parameters()):
                    parameter.normal_(0, 30)
        elif self.num_timesteps - 32 in self.steps:
            world_model.load_state_dict(self.weights)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (3,)), spaces.MultiBinary(3)])
def test_imagination_of_a_world_model_that_has_exploded_is_not_used(space: spaces.Space) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(space), **SMALL)
    rows = ImaginedRows()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(160, callback=[Scramble({32, 96}), rows])
    assert len([warning for warning in caught if "has diverged" in str(warning.message)]) == 1
    assert [count > 0 for count in rows.counts] == [True, False, True, False, True]


def test_weights_and_optimiser_of_a_world_model_that_diverged_are_those_of_before() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(32)
    world_model = model.world_model
    weights = {name: value.clone() for name, value in world_model.state_dict().items()}
    optimizer = {name: value["exp_avg"].clone() for name, value in world_model.optimizer.state_dict()["state"].items()}
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        model.imagination.fit(3, 16, 1e38)
    for name, value in world_model.state_dict().items():
        assert th.equal(value, weights[name])
    for name, value in world_model.optimizer.state_dict()["state"].items():
        assert th.equal(value["exp_avg"], optimizer[name])
    assert np.isfinite(list(model.imagination.fit(3, 16, 1e-3).values())).all()


def test_ctrl_c_while_a_world_model_diverges_leaves_the_weights_of_before() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), **SMALL).learn(32)
    weights = {name: value.clone() for name, value in model.world_model.state_dict().items()}

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.imagination.fit(3, 16, 1e38, lambda: interrupt() if not_finite(model.world_model) else None)
    assert all(th.equal(value, weights[name]) for name, value in model.world_model.state_dict().items())


def not_finite(module: th.nn.Module) -> bool:
    """
    :param module: Networks
    :return: Whether a weight of them is NaN or infinite
    """
    return not all(tensor.isfinite().all() for tensor in module.state_dict().values())
