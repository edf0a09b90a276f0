"""What the policy learns from: real and imagined rows, or imagined ones only."""

from typing import Any

import numpy as np
import pytest
import torch as th
from environments import SMALL, ToyEnv
from logs import KeptLog
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_agd import AGDPPO, AugmentedRolloutBuffer, GuidanceCallback, SigmoidAdvantageGuide
from sb3_agd.imagination import Settings
from sb3_agd.imagination.value_bounds import UNKNOWN_RANGE

# Without the arguments of PPO
GUIDANCE = {key: SMALL[key] for key in SMALL if key in Settings.__dataclass_fields__}


def weights(model: Any) -> th.Tensor:
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


class Weights(BaseCallback):
    """Keeps the weights of the policy at the start of each rollout, and the number of rows that each update has."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[th.Tensor] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.kept.append(weights(self.model))


def test_only_imagined_rows_are_in_the_minibatches() -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), policy_data="imagined", **SMALL).learn(64)
    buffer = model.rollout_buffer
    assert isinstance(buffer, AugmentedRolloutBuffer) and buffer.imagined is not None
    rows = list(buffer.get(16))
    seen = th.cat([batch.old_log_prob for batch in rows])
    assert len(seen) == buffer.n_imagined == 64
    assert th.equal(seen.sort().values, buffer.imagined.old_log_prob.sort().values)


def test_nothing_is_learned_until_there_are_imagined_rows() -> None:
    model, kept = AGDPPO("MlpPolicy", ToyEnv(), policy_data="imagined", **SMALL | {"world_model_warmup": 96}), Weights()
    model.learn(160, kept)
    same = [th.equal(*pair) for pair in zip(kept.kept, [*kept.kept[1:], weights(model)], strict=True)]
    assert same == [True, True, False, False, False]
    mixed, kept = AGDPPO("MlpPolicy", ToyEnv(), **SMALL | {"world_model_warmup": 96}), Weights()
    mixed.learn(64, kept)
    assert not th.equal(*kept.kept)


def test_later_rounds_without_imagined_rows_leave_the_policy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = AGDPPO("MlpPolicy", ToyEnv(), policy_data="imagined", **SMALL | {"n_steps": 96})
    usable, updates = iter([True, False]), []
    monkeypatch.setattr(GuidanceCallback, "_make_usable", lambda self, imagination: self._fit(imagination) and next(usable))
    monkeypatch.setattr("stable_baselines3.PPO.train", lambda self: updates.append(self.rollout_buffer.n_imagined))
    model.learn(96)
    assert updates == [64]


def test_other_algorithms_learn_from_imagined_rows_only() -> None:
    callback = GuidanceCallback(**GUIDANCE, policy_data="imagined")
    model = A2C("MlpPolicy", "Pendulum-v1", n_steps=32, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu")
    model.learn(128, callback)
    assert model.rollout_buffer.n_imagined == len(next(model.rollout_buffer.get(None)).advantages) == 64


def test_one_step_on_all_imagined_rows_is_that_of_a2c() -> None:
    """The paper's learner: PPO's loss in its first step is A2C's (arXiv 2205.09123)."""
    settings = SMALL | {
        "n_epochs": 1,
        "batch_size": 64,
        "policy_data": "imagined",
        "seed": 0,
        "policy_kwargs": {"net_arch": [8]},
    }
    model = AGDPPO("MlpPolicy", "Pendulum-v1", normalize_advantage=False, max_grad_norm=1e9, **settings).learn(64)
    buffer = model.rollout_buffer
    model.imagination.start_rollout()
    rows, _ = model.imagination.imagine_rows(model.settings.guidance_at(1.0, "none"), 64)
    buffer.augment(rows, np.random.default_rng(0), 0)
    gradients = []
    other = A2C("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, max_grad_norm=1e9, device="cpu")
    other.policy.load_state_dict(model.policy.state_dict())
    other.rollout_buffer = buffer
    for each in (model, other):
        each.set_logger(Logger(None, []))
        each.policy.optimizer.step = lambda *_: None
        each.train()
        gradients.append(th.cat([parameter.grad.flatten() for parameter in each.policy.parameters()]))
    th.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("guidance", [SigmoidAdvantageGuide("sigma4", False, False, False)])
def test_the_paper_s_learner_updates_every_few_steps_and_judges_the_critic_on_many(guidance: SigmoidAdvantageGuide) -> None:
    arguments = GUIDANCE | {"real_steps_per_update": 4, "synthetic_ratio": 32, "world_model_gradient_steps": 1}
    arguments |= {"guidance": guidance, "guidance_mode": "gradient", "min_advantage_correlation": -1}
    callback = GuidanceCallback(**arguments, policy_data="imagined", start_states="all")
    log, kept = KeptLog(), Weights()
    model = A2C("MlpPolicy", "Pendulum-v1", n_steps=4, rollout_buffer_class=AugmentedRolloutBuffer, device="cpu")
    model.set_logger(Logger(None, [log]))
    model.learn(80, [callback, kept], log_interval=1)
    assert callback.imagination is not None and callback.imagination.state.real_rows is not None
    assert len(callback.imagination.state.real_rows.values) == 80
    figures = [row["agd/n_imagined"] for row in log.rows if "agd/n_imagined" in row]
    assert figures == [128] * 20
    assert not any(th.equal(*pair) for pair in zip(kept.kept[:-1], kept.kept[1:], strict=True))


def test_a_guide_may_do_without_the_trust_in_the_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    for critic_trust in (True, False):
        guide = SigmoidAdvantageGuide(critic_trust=critic_trust)
        model = AGDPPO("MlpPolicy", ToyEnv(), guidance=guide, guidance_scale=2.0, **SMALL)
        model.imagination.state.critic_explained_variance = 0.25
        effective = model.imagination.effective_guidance(model.settings.guidance_at(1.0))
        assert effective.scale == (0.5 if critic_trust else 2.0)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_the_bound_on_values_can_be_switched_off(gamma: float) -> None:
    for bound_values in (True, False):
        settings = SMALL | {"gamma": gamma, "rollout_buffer_kwargs": {"bound_values": bound_values}}
        model = AGDPPO("MlpPolicy", ToyEnv(), **settings).learn(64)
        assert np.isfinite(model.rollout_buffer.returns).all()
        assert (model.imagination.state.value_range == UNKNOWN_RANGE) == (not bound_values)
    with pytest.raises(ValueError, match="`bound_values` in `rollout_buffer_kwargs` must be True or False, not 'no'"):
        AGDPPO("MlpPolicy", ToyEnv(), rollout_buffer_kwargs={"bound_values": "no"}, **SMALL)
