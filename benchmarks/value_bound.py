"""
Whether the critic stays within the returns that were really earned::

    python -m benchmarks.value_bound --env Hopper-v5 --steps 60000

Values learned on imagined states can run away. At the end of each rollout, this compares the largest magnitude of
the critic's values on recent real states and on the imagined rows with that of the discounted returns of all real
rewards so far.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.settings import algorithm_arguments, load_settings, make_environment
from sb3_agd import AGDPPO, AugmentedRolloutBuffer
from sb3_agd.agdppo.imagination import discounted_returns


class ValueMonitor(BaseCallback):
    """
    Note the largest values and returns after each rollout.

    :param every: Print a line after this many rollouts
    """

    def __init__(self, every: int = 10):
        super().__init__()
        self.every = every
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, AGDPPO) and isinstance(self.model.rollout_buffer, AugmentedRolloutBuffer)
        store, agent, buffer = self.model.replay_buffer, self.model.imagination.agent, self.model.rollout_buffer
        returns = [
            np.abs(discounted_returns(agent.rewards(th.from_numpy(rewards)).numpy(), self.model.gamma)).max()
            for rewards in store.recent_episode_rewards(store.n_rows)
        ]
        values = [np.abs(buffer.values).max()]
        if buffer.imagined is not None:
            values.append(buffer.imagined.old_values.abs().max().item())
        row = {"timesteps": self.num_timesteps, "largest_value": float(max(values)), "largest_return": float(max(returns))}
        self.rows.append(row)
        if len(self.rows) % self.every == 0:
            print(
                " ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
            )


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
    env = make_environment(arguments.env, settings, arguments.seed, training=True)
    monitor = ValueMonitor()
    AGDPPO(env=env, seed=arguments.seed, device="cpu", **algorithm_arguments(settings)).learn(arguments.steps, monitor)
    ratios = [row["largest_value"] / row["largest_return"] for row in monitor.rows]
    print(f"largest |V| / largest real discounted return: {max(ratios):.2f} over {len(ratios)} rollouts")
    if arguments.output is not None:
        summary = {"env": arguments.env, "steps": arguments.steps, "seed": arguments.seed, "largest_ratio": max(ratios)}
        arguments.output.write_text(json.dumps({**summary, "rollouts": monitor.rows[:: monitor.every]}, indent=1))


if __name__ == "__main__":
    main()
