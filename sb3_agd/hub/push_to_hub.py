"""``sb3-agd push-to-hub``: an agent in the form that ``load-from-hub`` reads."""

import argparse
import shutil
import tempfile
from pathlib import Path
from zipfile import ZipFile

import huggingface_hub
import yaml
from huggingface_sb3 import EnvironmentName, ModelRepoId
from rl_zoo3.utils import get_model_path

from sb3_agd.hub.model_card import Agent, Evaluation, model_card
from sb3_agd.zoo.benchmark import check_options, evaluate

# Files of an agent on the hub, besides its own
SETTINGS = ("args.yml", "config.yml", "env_kwargs.yml")
METRICS = "train_eval_metrics.zip"
# Not all agents have them
STATISTICS = "vec_normalize.pkl"
CARD_FILE = "README.md"
# The hub shows a video of this name
VIDEO = "replay.mp4"


def gather_files(agent: Agent, evaluation: Evaluation, folder: Path, repo_id: str | None, video: Path | None) -> None:
    """
    Copy what belongs to an agent, and write its model card.

    :param agent: The agent
    :param evaluation: Its evaluation
    :param folder: Folder for the files
    :param repo_id: Name of the repository on the hub, with the organization; ``None`` for files that do not go there
    :param video: Video to show
    """
    shutil.copy(agent.file, folder / agent.name.filename)
    shutil.copy(agent.settings / "args.yml", folder)
    shutil.copy(agent.settings / "config.yml", folder)
    (folder / "env_kwargs.yml").write_text(yaml.dump(agent.read_settings("args.yml")["env_kwargs"] or {}))
    statistics = agent.settings / "vecnormalize.pkl"
    if statistics.is_file():
        shutil.copy(statistics, folder / STATISTICS)
    with ZipFile(folder / METRICS, "w") as archive:
        for file in (*agent.file.parent.glob("evaluations.npz"), *agent.file.parent.glob("*.csv")):
            archive.write(file, file.name)
    if video is not None:
        shutil.copy(video, folder / VIDEO)
    (folder / CARD_FILE).write_text(model_card(agent, evaluation, repo_id))


def run(arguments: argparse.Namespace) -> None:
    """
    Evaluate an agent and push it.

    :param arguments: Command line, see :func:`sb3_agd.zoo.parsers.add_push_arguments`
    :raises FileNotFoundError: If there is no such video
    :raises ValueError: If an option of the evaluation chooses another agent
    """
    check_options(arguments.enjoy_options, ": push-to-hub has --exp-id and --load-best itself, to be given before `--`")
    if arguments.video is not None and not arguments.video.is_file():
        raise FileNotFoundError(f"argument --video: there is no file {arguments.video}")
    algo, env_id = arguments.algo, arguments.env
    _, file, _ = get_model_path(
        arguments.exp_id, arguments.folder, algo, EnvironmentName(env_id), load_best=arguments.load_best
    )
    agent = Agent(algo, env_id, Path(file))
    repo_id = str(ModelRepoId(arguments.organization, arguments.repo_name or agent.name))
    n_timesteps, options = arguments.n_timesteps, arguments.enjoy_options
    chosen = ["--exp-id", str(arguments.exp_id), *(["--load-best"] if arguments.load_best else [])]
    returns = evaluate(algo, env_id, arguments.folder, n_timesteps, [*chosen, *options])
    with tempfile.TemporaryDirectory() as folder:
        gather_files(agent, Evaluation(returns, n_timesteps, options), Path(folder), repo_id, arguments.video)
        api = huggingface_hub.HfApi()
        url = api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=arguments.commit_message)
    print(f"Pushed to {url}")
