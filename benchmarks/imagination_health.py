"""
Whether imagination stays true to what was really experienced::

    python -m benchmarks.imagination_health --env Hopper-v5 --steps 60000

Two things can go wrong unseen. Values learned on imagined states can run away: after each rollout, the largest
magnitude of the critic's values on the real and the imagined states is compared with that of the discounted returns
of all real rewards so far. And imagined episodes can end too seldom: before the world model is trained on a rollout,
the rate of terminations that it imagines there, given the true actions, is compared with the real one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.settings import algorithm_arguments, load_settings, make_environment
from sb3_agd import AGDPPO, AugmentedRolloutBuffer
from sb3_agd.diagnostics.evaluator import discounted_returns

TERMINATION_RATES = ("imagined_termination_rate", "real_termination_rate")


def largest_ratio(rows: list[dict[str, float]]) -> float | None:
    """
    :param rows: Figures of each rollout
    :return: Largest magnitude of the values in a rollout, by that of the returns so far; ``None`` if these are all zero
    """
    ratios = [
        max(row["largest_real_value"], row.get("largest_imagined_value", 0.0)) / row["largest_return"]
        for row in rows
        # The first rollouts may be before the end of the first episode
        if row["largest_return"] > 0
    ]
    return max(ratios, default=None)


class Monitor(BaseCallback):
    """
    Note the figures of each rollout.

    :param every: Print a line after this many rollouts
    """

    def __init__(self, every: int = 10):
        super().__init__()
        self.every = every
        self.rows: list[dict[str, float]] = []
        self.largest_return = 0.0

    def _on_training_start(self) -> None:
        assert isinstance(self.model, AGDPPO)
        self.gamma = self.model.gamma
        # Of the episodes under way
        self.rewards: list[list[float]] = [[] for _ in range(self.training_env.num_envs)]

    def _on_step(self) -> bool:
        for rewards, reward, done in zip(self.rewards, self.locals["rewards"], self.locals["dones"], strict=True):
            # In the critic's units
            rewards.append(float(reward))
            if done:
                returns = discounted_returns(np.array(rewards), self.gamma)
                self.largest_return = max(self.largest_return, float(np.abs(returns).max()))
                rewards.clear()
        return True

    def _largest_value(self, observations: np.ndarray | th.Tensor) -> float:
        """
        :param observations: As the policy sees them, shape (..., observation_dim)
        :return: Largest magnitude of the critic's own values there, before any bound
        """
        assert isinstance(self.model, AGDPPO)
        rows = th.as_tensor(observations).reshape(-1, observations.shape[-1])
        with th.no_grad():
            return self.model.policy.predict_values(rows).abs().max().item()

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, AGDPPO) and isinstance(self.model.rollout_buffer, AugmentedRolloutBuffer)
        buffer = self.model.rollout_buffer
        row = {
            "timesteps": self.num_timesteps,
            "largest_return": self.largest_return,
            "largest_real_value": self._largest_value(buffer.observations),
        }
        if buffer.imagined is not None:
            row["largest_imagined_value"] = self._largest_value(buffer.imagined.observations)
        logged = self.logger.name_to_value
        row |= {name: float(logged[f"agd/{name}"]) for name in TERMINATION_RATES if f"agd/{name}" in logged}
        self.rows.append(row)
        if len(self.rows) % self.every == 0:
            print("  ".join(f"{name} {value:.5g}" for name, value in row.items()))


def main() -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    settings = load_settings("agdppo", arguments.env)
    env = make_environment(arguments.env, settings, arguments.seed)
    monitor = Monitor()
    AGDPPO(env=env, seed=arguments.seed, device="cpu", **algorithm_arguments(settings)).learn(arguments.steps, monitor)
    summary = {
        "env": arguments.env,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "largest_value_to_return": largest_ratio(monitor.rows),
    }
    tested = [row for row in monitor.rows if set(TERMINATION_RATES) <= row.keys()]
    summary |= {name: float(np.mean([row[name] for row in tested])) for name in TERMINATION_RATES}
    print(json.dumps(summary, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({**summary, "rollouts": monitor.rows[:: monitor.every]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
