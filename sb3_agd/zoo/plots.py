"""The zoo's ``plot_from_file``, normalised with scores of the MuJoCo tasks."""

import ast
import importlib
import inspect

from rl_zoo3.plots.score_normalization import ReferenceScore, min_max_score_per_env

# Score 0 is the mean return of 100 episodes of uniformly random actions, measured.
# Score 1 is PPO after 1 million steps, rounded, from the public tables of RL Baselines3 Zoo (benchmark.md: HalfCheetah
# 5819, Hopper 2410, Walker2d 3479, Swimmer 282) and Tianshou (examples/mujoco: HalfCheetah 5784, Hopper 2609,
# Walker2d 3589, Reacher -4.1, Ant 3258, InvertedPendulum 1000, InvertedDoublePendulum 9231). These are of older
# versions of the tasks, there is no such table for v5.
REFERENCE_SCORES = (
    ReferenceScore("HalfCheetah-v5", -274, 5800),
    ReferenceScore("Hopper-v5", 17, 2600),
    ReferenceScore("Walker2d-v5", 1, 3500),
    ReferenceScore("Reacher-v5", -43.4, -4.1),
    ReferenceScore("Ant-v5", -48, 3300),
    ReferenceScore("Swimmer-v5", 1, 282),
    ReferenceScore("InvertedPendulum-v5", 5, 1000),
    ReferenceScore("InvertedDoublePendulum-v5", 49, 9200),
)
# `all-plots` finds tasks by any part of their names: the whole name, the one without a version, and the zoo's own
# short ones
TASKS = {score.env_id: score.env_id for score in REFERENCE_SCORES}
TASKS |= {task.removesuffix("-v5"): task for task in TASKS} | {"Half": "HalfCheetah-v5", "Walker": "Walker2d-v5"}


def plot_from_file() -> None:
    """
    Run the zoo's function on the MuJoCo tasks. It names the PyBullet ones within its body, where no argument reaches
    them, so they are replaced in its syntax tree.
    """
    min_max_score_per_env.update({score.env_id: score for score in REFERENCE_SCORES})
    module = importlib.import_module("rl_zoo3.plots.plot_from_file")
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "env_key_to_env_id":
            node.value = ast.BinOp(node.value, ast.BitOr(), ast.parse(repr(TASKS), mode="eval").body)
        elif isinstance(node, ast.Constant) and node.value == "PyBullet envs":
            node.value = "Evaluations at the end of training"
    exec(compile(ast.fix_missing_locations(tree), str(module.__file__), "exec"), vars(module))
    module.plot_from_file()


if __name__ == "__main__":
    plot_from_file()
