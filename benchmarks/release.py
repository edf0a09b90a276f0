"""
Train AGDPPO on the tasks of the paper with the shipped settings, and write one file for each agent, with its model card::

    python -m benchmarks.release --steps 100000 --seed 0

Agents that were trained before, with the same number of steps, seed and settings, are not trained again.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile

from huggingface_sb3 import EnvironmentName
from rl_zoo3 import get_latest_run_id

from benchmarks.evaluation import EVALUATION_SEEDS
from benchmarks.settings import settings_of
from sb3_agd.checkpoint.save_util import replaced_file
from sb3_agd.hub.model_card import Agent, Evaluation
from sb3_agd.hub.push_to_hub import gather_files
from sb3_agd.zoo.benchmark import evaluate, training_steps

TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Reacher-v5")
ALGORITHM = "agdppo"
COMMAND = (sys.executable, "-m", "sb3_agd")
EVALUATION_STEPS = 20_000
VIDEO_STEPS = 500


def latest_agent(task: str, logs: Path) -> Agent:
    """
    :param task: Name of the task
    :param logs: Folder of the logs
    :return: The agent of the latest run, which need not be there
    """
    name, runs = EnvironmentName(task), logs / ALGORITHM
    return Agent(ALGORITHM, task, runs / f"{name}_{get_latest_run_id(str(runs), name)}" / f"{name}.zip")


def is_finished(agent: Agent, steps: int) -> bool:
    """
    :param agent: The agent of a run
    :param steps: Number of steps to train for
    :return: Whether it was trained for so many, with the present settings
    """
    if not agent.file.is_file() or training_steps(str(agent.file)) < steps:
        return False
    return agent.read_settings("config.yml") == settings_of(f"{ALGORITHM}.yml", agent.env_id)


def train(task: str, steps: int, seed: int, logs: Path) -> Agent:
    """
    :param task: Name of the task
    :param steps: Number of steps
    :param seed: Seed of the training
    :param logs: Folder of the logs
    :return: The trained agent
    :raises SystemExit: If the training failed, or was interrupted
    """
    agent = latest_agent(task, logs)
    if is_finished(agent, steps):
        print(f"{task} was trained before")
        return agent
    options = ["-n", str(steps), "--seed", str(seed), "-f", str(logs), "--eval-freq", "-1", "--device", "cpu"]
    subprocess.run([*COMMAND, "train", "--algo", ALGORITHM, "--env", task, *options, "--verbose", "0", "--progress"])
    agent = latest_agent(task, logs)
    if not is_finished(agent, steps):
        sys.exit(f"Training on {task} did not come to its end")
    return agent


def film(agent: Agent, logs: Path, options: list[str], folder: Path) -> Path | None:
    """
    :param agent: The agent
    :param logs: Folder of the logs
    :param options: Options of ``record-video``
    :param folder: Where to leave the video
    :return: The video, ``None`` if the task cannot be drawn here
    """
    command = [*COMMAND, "record-video", "--algo", agent.algo, "--env", agent.env_id, "-f", str(logs)]
    command += ["-n", str(VIDEO_STEPS), "-o", str(folder), *options]
    # Without a display, MuJoCo renders through EGL only
    variables = os.environ if os.environ.get("DISPLAY") else {"MUJOCO_GL": "egl", **os.environ}
    done = subprocess.run(command, env=variables, stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        print(f"No video of {agent.env_id}, see above", file=sys.stderr)
        return None
    return next(folder.glob("*.mp4"))


def write_release(agent: Agent, seed: int, logs: Path, with_video: bool, target: Path) -> None:
    """
    Evaluate an agent on episodes that it was not trained in, and write its file, which holds one folder.

    :param agent: The agent
    :param seed: Seed of its training
    :param logs: Folder of the logs
    :param with_video: Whether to film it
    :param target: The file
    """
    options = ["--seed", str((seed + 1) * EVALUATION_SEEDS)]
    returns = evaluate(agent.algo, agent.env_id, str(logs), EVALUATION_STEPS, options)
    with TemporaryDirectory() as temporary:
        folder, videos = Path(temporary) / agent.name, Path(temporary) / "videos"
        folder.mkdir()
        video = film(agent, logs, options, videos) if with_video else None
        gather_files(agent, Evaluation(returns, EVALUATION_STEPS, options), folder, repo_id=None, video=video)
        with replaced_file(target, "zip") as file, ZipFile(file, "w", ZIP_DEFLATED) as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.relative_to(temporary))
    print(f"{target}: return {returns.mean():.2f} +/- {returns.std():.2f} ({len(returns)} episodes)")


def main() -> None:
    """Parse the command line, train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK", help="names of tasks")
    parser.add_argument("--steps", type=int, default=100_000, help="environment steps of each training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trainings")
    parser.add_argument("--video", action="store_true", help="film the agents, where they can be drawn")
    parser.add_argument("--logs", type=Path, default=Path("runs/release"), help="folder for the logs")
    parser.add_argument("--folder", type=Path, default=Path("dist/agents"), help="folder for the files")
    arguments = parser.parse_args()
    logs = arguments.logs / f"{arguments.steps}-steps-seed-{arguments.seed}"
    for task in arguments.tasks:
        agent = train(task, arguments.steps, arguments.seed, logs)
        target = arguments.folder / f"{agent.name}-release.zip"
        write_release(agent, arguments.seed, logs, arguments.video, target)


if __name__ == "__main__":
    main()
