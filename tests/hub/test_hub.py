"""Agents on the Hugging Face hub, for which a local server stands in, and their model cards."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_stand_in import Hub, running_hub
from processes import PATIENCE, finish, run_here, skip_where_nothing_is_drawn, start
from short_trainings import ENV, TINY, TRAIN

from sb3_agd.hub.model_card import Agent, Evaluation, model_card
from sb3_agd.zoo.experiment_manager import AGDExperimentManager

ROOT = Path(__file__).parents[2]
CONTROL = "CartPole-v1"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the logs of an AGDPPO with VecNormalize and of a PPO without."""
    folder = tmp_path_factory.mktemp("hub")
    run_here(folder, *TRAIN, "-n", "320", "--eval-freq", "-1", "--seed", "7", "-params", *TINY)
    small = ["--eval-freq", "-1", "-n", "128", "--seed", "7", "-params", "n_steps:16", "normalize:False"]
    run_here(folder, "train", "--algo", "ppo", "--env", CONTROL, "--device", "cpu", *small)
    return folder


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    """The server, to which both agents were pushed."""
    with running_hub() as hub:
        for algo, env_id in (("agdppo", ENV), ("ppo", CONTROL)):
            agent = ["--algo", algo, "--env", env_id, "-f", "logs", "-orga", "me", "-m", f"Push {algo}"]
            pushed = start(folder, "push-to-hub", *agent, "-n", "400", "--", "--seed", "1", **hub.variables(folder / "cache"))
            assert f"Pushed to {hub.address}/me/{algo}-{env_id}" in finish(pushed)
        yield hub


@pytest.fixture(scope="module")
def card(hub: Hub) -> str:
    return hub.repositories[f"me/agdppo-{ENV}"]["README.md"].decode()


@pytest.fixture(scope="module")
def loaded(folder: Path, hub: Hub, card: str) -> Path:
    """Folder in which the card's command for it has loaded the agent."""
    load = next(words for words in commands(card) if "load-from-hub" in words)
    assert load[:2] == ["TRUST_REMOTE_CODE=True", "sb3-agd"]
    variables = {**hub.variables(folder / "other cache"), "TRUST_REMOTE_CODE": "True"}
    assert f"Saved to agents/agdppo/{ENV}_1" in finish(start(folder, *load[2:], **variables))
    return folder


def blocks(card: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(card) if kind == language]


def commands(card: str) -> list[list[str]]:
    return [shlex.split(line) for block in blocks(card, "bash") for line in block.splitlines()]


def table(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (\w+) \| (.*) \|$", card, re.MULTILINE))


def test_what_is_pushed_is_what_comes_back(loaded: Path, hub: Hub) -> None:
    assert hub.messages == ["Push agdppo", "Push ppo"]
    trained, back = (loaded / logs / "agdppo" / f"{ENV}_1" for logs in ("logs", "agents"))
    for file in (f"{ENV}.zip", "0.monitor.csv", *(f"{ENV}/{name}" for name in ("args.yml", "config.yml", "vecnormalize.pkl"))):
        assert (back / file).read_bytes() == (trained / file).read_bytes()
    repository = hub.repositories[f"me/agdppo-{ENV}"]
    assert (back / "README.md").read_bytes() == repository["README.md"]
    assert (back / ENV / "env_kwargs.yml").read_bytes() == repository["env_kwargs.yml"]


def test_an_agent_without_normalisation_comes_back(folder: Path, hub: Hub) -> None:
    arguments = ["--algo", "ppo", "--env", CONTROL, "-f", "agents"]
    variables = {**hub.variables(folder / "cache"), "TRUST_REMOTE_CODE": "True"}
    finish(start(folder, "load-from-hub", *arguments, "-orga", "me", **variables))
    assert "Mean reward" in run_here(folder, "enjoy", *arguments, "--no-render", "-n", "300")


def test_an_agent_that_is_not_there_is_named_in_one_message(folder: Path, hub: Hub) -> None:
    variables = {**hub.variables(folder / "cache"), "TRUST_REMOTE_CODE": "True"}
    agent = ["--algo", "agdppo", "--env", ENV, "-orga", "me", "-name", "nothing", "-f", "missing"]
    process = start(folder, "load-from-hub", *agent, **variables)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "Repository Not Found" in errors and "me/nothing" in errors and "Traceback" not in errors
    assert not (folder / "missing").exists()


def test_a_missing_video_is_noticed_before_the_evaluation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_agd.hub.push_to_hub.evaluate", None)
    push = ["push-to-hub", "--algo", "agdppo", "--env", ENV, "-f", str(folder / "logs"), "-orga", "me"]
    with pytest.raises(SystemExit, match=r"argument --video: there is no file replay\.mp4"):
        run_here(tmp_path, *push, "--video", "replay.mp4")


def test_nothing_is_loaded_from_the_hub_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRUST_REMOTE_CODE", raising=False)
    with pytest.raises(SystemExit, match="TRUST_REMOTE_CODE"):
        run_here(tmp_path, "load-from-hub", "--algo", "agdppo", "--env", ENV, "-orga", "me", "-f", "agents")
    assert not any(tmp_path.iterdir())


def test_commands_of_the_card_run_and_the_agent_returns_what_it_says(card: str, loaded: Path) -> None:
    install, _, watch, _, evaluate, imagine = commands(card)
    assert install == ["pip", "install", "-c", "constraints.txt", ".[zoo]"]
    assert f"Loading agents/agdppo/{ENV}_1/{ENV}.zip" in run_here(loaded, *watch[1:], "--no-render", "-n", "300")
    assert "after one step" in run_here(loaded, *imagine[1:], "--n-starts", "2", "--n-filmed", "0")
    said = re.fullmatch(r"(\S+ \+/- \S+), .* of (\d+) episodes with deterministic actions", table(card)["return"])
    assert said is not None
    assert f"{said[2]} Episodes\nMean reward: {said[1]}\n" in run_here(loaded, *evaluate[1:])


def test_the_card_films_the_agent(card: str, loaded: Path) -> None:
    variable, _, *film = commands(card)[3]
    assert variable == "MUJOCO_GL=egl"
    process = start(loaded, *film, "-n", "10", MUJOCO_GL="egl")
    _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode != 0:
        skip_where_nothing_is_drawn(ENV, errors)
    assert len([*(loaded / "videos").glob("*.mp4")]) == 1


def test_python_of_the_card_imagines(
    card: str, loaded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, hyperparameters = blocks(card, "python")
    monkeypatch.chdir(loaded)
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.startswith("Segments(4 of horizon 2, ")
    trained = dict(yaml.unsafe_load((loaded / "logs" / "agdppo" / f"{ENV}_1" / ENV / "config.yml").read_text()))
    del trained["n_timesteps"]
    assert ast.literal_eval(hyperparameters) == trained


def test_the_card_says_what_the_agent_is(card: str, hub: Hub) -> None:
    rows = table(card)
    assert rows["task"] == ENV
    assert rows["training"] == "320 steps, seed 7"
    assert re.search(r"Stable-Baselines3 2\.\S+, PyTorch \S+, Gymnasium 1\.\S+; evaluated with sb3_agd \d", rows["versions"])
    metadata = yaml.safe_load(card.split("---")[1])["model-index"][0]
    assert metadata["name"] == "AGDPPO"
    assert metadata["results"][0]["dataset"]["name"] == ENV
    assert rows["return"].startswith(f"{metadata['results'][0]['metrics'][0]['value']}, ")
    (citation,) = blocks(card, "bibtex")
    assert citation in (ROOT / "CITATION.bib").read_text()
    # What only AGDPPO has
    other = hub.repositories[f"me/ppo-{CONTROL}"]["README.md"].decode()
    assert table(other)["algorithm"] == "PPO"
    assert "world model" not in other and "bibtex" not in other
    assert "{" not in other.partition("## Hyperparameters")[0]


def test_files_in_a_folder_are_loaded_without_the_hub(folder: Path, hub: Hub, tmp_path: Path) -> None:
    for name, content in hub.repositories[f"me/agdppo-{ENV}"].items():
        (tmp_path / name).write_bytes(content)
    load = ["load-from-hub", "--algo", "agdppo", "--env", ENV, "--local", ".", "-f", "agents"]
    for number in (1, 2):
        assert f"Saved to agents/agdppo/{ENV}_{number}" in run_here(tmp_path, *load)
    with pytest.raises(SystemExit, match=f"{ENV}_2 already exists: replace it by --force"):
        run_here(tmp_path, *load, "--exp-id", "2")
    assert f"Saved to agents/agdppo/{ENV}_2" in run_here(tmp_path, *load, "--exp-id", "2", "--force")
    (tmp_path / "config.yml").unlink()
    with pytest.raises(SystemExit, match=r"There is no config\.yml in \."):
        run_here(tmp_path, *load)
    with pytest.raises(SystemExit, match="argument --exp-id"):
        run_here(tmp_path, *load, "--exp-id", "-1")


def test_the_card_follows_the_task_and_the_choice_of_the_agent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "agents" / "agdppo" / f"{ENV}_1"
    shutil.copytree(folder / "logs" / "agdppo" / f"{ENV}_1", run)
    evaluation = Evaluation(np.array([1.0, 3.0]), 100, ["--stochastic"])

    def card_with(file: str, **changed: Any) -> str:
        settings = run / ENV / file
        settings.write_text(yaml.dump({**yaml.unsafe_load(settings.read_text()), **changed}))
        return model_card(Agent("agdppo", ENV, agent), evaluation, repo_id=None)

    agent = run / f"{ENV}.zip"
    card = card_with("args.yml", env_kwargs={"frame_skip": 2})
    assert table(card)["task"] == f"{ENV} with {{'frame_skip': 2}}"
    assert table(card)["return"] == "2.00 +/- 1.00, mean and standard deviation of 2 episodes with stochastic actions"
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {}
    exec(blocks(card, "python")[0], variables)
    assert variables["model"].num_timesteps == 320
    # As `enjoy` plays such tasks
    with monkeypatch.context() as patches:
        patches.setattr(AGDExperimentManager, "is_minigrid", lambda _: True)
        for options, kind in (([], "stochastic"), (["--deterministic"], "deterministic")):
            evaluation = Evaluation(evaluation.returns, 100, options)
            assert f"with {kind} actions" in table(card_with("args.yml"))["return"]
    # An agent that was trained on counts from zero, a checkpoint that is resumed does not
    for before, training in (
        (f"logs/{ENV}.zip", "320 further steps, from an agent trained before"),
        ("logs/rl_model_160_steps.zip", "320 steps"),
    ):
        card = card_with("args.yml", trained_agent=before)
        assert table(card)["training"] == f"{training}, seed 7"
        assert f"This is one agent, trained with {training}, on one seed." in card
    # Observations of the task alone are not enough to imagine from
    card = card_with("config.yml", frame_stack=3)
    assert len(blocks(card, "python")) == 1 and "sb3-agd imagine" in card
    agent = agent.rename(run / "best_model.zip")
    assert table(card_with("config.yml"))["training"] == "320 steps, seed 7, the best agent of the evaluations on the way"
