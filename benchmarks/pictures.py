"""
Train an agent and show what it imagines: the animation of the README and the figures of docs/diagnostics.md::

    python -m benchmarks.pictures

On a machine without a display, MuJoCo needs ``MUJOCO_GL=egl``.
"""

import argparse
import json
from contextlib import closing
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from PIL import Image

from benchmarks.compare import make_agent
from benchmarks.suite import RESULTS
from sb3_agd import AGDPPO
from sb3_agd.diagnostics import imagination_report
from sb3_agd.diagnostics.evaluator import Evaluator
from sb3_agd.diagnostics.poses import find_pose, obstacle_to_draw
from sb3_agd.diagnostics.video import FRAMES_PER_SECOND, film_segment
from sb3_agd.imagination import NO_GUIDANCE
from sb3_agd.zoo.cli import filter_mujoco_warnings

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Before the animation: the agent runs by then, and is far from the end of the floor
STEPS_BEFORE = 100
HALF_SIZE = 320
GAP = 4
QUALITY = 70


def animate(model: AGDPPO, env_id: str, seed: int, n_segments: int, file: Path) -> None:
    """
    Animate segments as PPO learns from them, without guidance, each imagined from the real state at the end of the one before.

    :param model: A trained agent
    :param env_id: Name of its task
    :param seed: Seed of the episode and of all noise
    :param n_segments: Number of segments
    :param file: Where to save the animation, with the real motion left and the imagined one right
    :raises RuntimeError: If the task cannot be drawn
    """
    evaluator = Evaluator(model, partial(gym.make, env_id, render_mode="rgb_array"), seed)
    with closing(evaluator.env):
        pose, obstacle = find_pose(evaluator.env.unwrapped), obstacle_to_draw(evaluator.env)
        if pose is None or obstacle is not None:
            raise RuntimeError(f"No animation of {env_id}: {obstacle}")
        state = evaluator.simulator.reset(seed)
        act = evaluator.sample_policy(STEPS_BEFORE)
        for step in range(STEPS_BEFORE):
            state, _, _, done = evaluator.simulator.step(act(state, step))
            state = evaluator.simulator.reset() if done else state
        frames: list[np.ndarray] = []
        for _ in range(n_segments):
            state = film_segment(evaluator, NO_GUIDANCE, pose, state, frames)
    for frame in frames:
        # Both floors would look like one
        frame[:, frame.shape[1] // 2 - GAP // 2 :][:, :GAP] = 255
    images = [Image.fromarray(frame).resize((2 * HALF_SIZE, HALF_SIZE), Image.Resampling.LANCZOS) for frame in frames]
    duration = 1000 // FRAMES_PER_SECOND
    images[0].save(file, save_all=True, append_images=images[1:], duration=duration, loop=0, quality=QUALITY, method=6)


def main() -> None:
    """Parse the command line, train, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--episode", type=int, default=2, help="seed of the episode that is shown")
    parser.add_argument("--model", type=Path, default=None, help="an agent of that task instead of a new one")
    parser.add_argument("--segments", type=int, default=12, help="segments of the animation")
    parser.add_argument("--folder", type=Path, default=IMAGES, help="folder of the pictures")
    parser.add_argument("--output", type=Path, default=RESULTS / "imagination_halfcheetah.json", help="file of the figures")
    arguments = parser.parse_args()
    # More threads slow such small networks down
    th.set_num_threads(1)
    filter_mujoco_warnings()
    if arguments.model is None:
        model = make_agent("agdppo", arguments.env, arguments.seed)
        model.learn(arguments.steps, progress_bar=True)
    else:
        model = AGDPPO.load(arguments.model, device="cpu")
    assert isinstance(model, AGDPPO)
    make_env = partial(gym.make, arguments.env)
    report = imagination_report(model, make_env, arguments.folder, seed=arguments.episode, n_filmed=0, progress_bar=True)
    (arguments.folder / "report.json").replace(arguments.output)
    print(json.dumps(report["advantages"], indent=1))
    animate(model, arguments.env, arguments.episode, arguments.segments, arguments.folder / "imagination.webp")


if __name__ == "__main__":
    main()
