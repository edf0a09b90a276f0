"""RL-Zoo's commands around one short training: what it leaves can be continued, played, filmed, evaluated and plotted."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from processes import PATIENCE, finish, run_here, skip_where_nothing_is_drawn, start
from short_trainings import ENV, TINY, TRAIN, load
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_agd import AGDPPO

# No episode is longer
EPISODE = "1000"
ENJOY = ["enjoy", "--algo", "agdppo", "--env", ENV, "-f", "logs", "--no-render", "-n", EPISODE]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the logs of two equal short training runs that used most options, the first one in a process of its own."""
    folder = tmp_path_factory.mktemp("trained")
    command = [
        *(*TRAIN, "-n", "256", "--seed", "1", "-f", "logs", "-tb", "tensorboard", "--progress"),
        *("--eval-freq", "128", "--eval-episodes", "2", "--save-freq", "128", "--save-replay-buffer", "-params", *TINY),
    ]
    for out in (finish(start(folder, *command)), run_here(folder, *command)):
        assert "hyperparams/agdppo.yml" in out
        assert "256/256" in out
    return folder


def test_training_leaves_the_agent_its_checkpoints_evaluations_transitions_and_statistics(trained: Path) -> None:
    folder = trained / "logs" / "agdppo" / f"{ENV}_1"
    assert load(folder).num_timesteps == 256
    assert load(folder, "rl_model_128_steps").num_timesteps == 128
    assert (folder / "best_model.zip").is_file()
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [128, 256]
    model = load(folder)
    model.load_replay_buffer(folder / "replay_buffer.pkl")
    assert len(model.replay_buffer) == 256
    assert yaml.unsafe_load((folder / ENV / "config.yml").read_text())["normalize"] is True
    assert (folder / ENV / "vecnormalize.pkl").is_file()
    events = EventAccumulator(str(trained / "tensorboard" / ENV / "AGDPPO_1")).Reload()
    assert {"agd/world_model_loss", "eval/mean_reward", "rollout/ep_rew_mean"} <= set(events.Tags()["scalars"])


def test_the_same_seed_trains_the_same_agent(trained: Path) -> None:
    first, second = (load(trained / "logs" / "agdppo" / f"{ENV}_{number}").policy.state_dict() for number in (1, 2))
    assert all(th.equal(value, second[name]) for name, value in first.items())


def test_enjoy_plays_the_last_and_the_best_agent(trained: Path) -> None:
    for choice, file in ([], ENV), (["--load-best"], "best_model"):
        out = run_here(trained, *ENJOY, *choice)
        assert f"{file}.zip" in out
        assert "Loading running average" in out
        assert "Mean reward" in out


def test_training_goes_on_from_a_saved_agent_with_its_transitions_and_statistics(trained: Path, tmp_path: Path) -> None:
    before = trained / "logs" / "agdppo" / f"{ENV}_1"
    out = run_here(
        tmp_path,
        *(*TRAIN, "-n", "64", "-i", str(before / f"{ENV}.zip"), "--eval-freq", "-1", "--save-replay-buffer"),
        *("-params", *TINY, "guidance_scale:0.7"),
    )
    assert "Loading replay buffer" in out
    assert "Loading saved VecNormalize stats" in out
    after = tmp_path / "logs" / "agdppo" / f"{ENV}_1"
    model = load(after)
    assert model.guidance_scale == 0.7
    assert model.world_model.n_updates > load(before).world_model.n_updates
    model.load_replay_buffer(after / "replay_buffer.pkl")
    assert len(model.replay_buffer) == 256 + 64
    counts = [
        VecNormalize.load(str(folder / ENV / "vecnormalize.pkl"), AGDPPO("MlpPolicy", ENV).get_env()).obs_rms.count
        for folder in (before, after)
    ]
    assert counts[1] > counts[0]


@pytest.mark.parametrize("best", [64, 256])
def test_evaluations_of_a_resumed_run_follow_those_before_the_checkpoint(trained: Path, tmp_path: Path, best: int) -> None:
    original, interrupted = trained / "logs" / "agdppo" / f"{ENV}_1", tmp_path / "agdppo" / f"{ENV}_1"
    shutil.copytree(original, interrupted)
    returns = {step: [1e6 * (step == best), 0.0] for step in (64, 128, 256)}
    lengths = [[10, 20]] * len(returns)
    np.savez(interrupted / "evaluations.npz", timesteps=[*returns], results=[*returns.values()], ep_lengths=lengths)
    checkpoint = interrupted / "rl_model_128_steps.zip"
    options = ["-n", "256", "-f", ".", "--eval-freq", "128", "--eval-episodes", "2", "-i", str(checkpoint), "-params", *TINY]
    with pytest.raises(SystemExit, match="on 2 episodes each time: give `--eval-episodes 2`"):
        run_here(tmp_path, *TRAIN, *options, "--eval-episodes", "3")
    shutil.rmtree(tmp_path / "agdppo" / f"{ENV}_2")
    run_here(tmp_path, *TRAIN, *options)
    resumed = tmp_path / "agdppo" / f"{ENV}_2"
    evaluations = np.load(resumed / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [64, 128, 256]
    assert evaluations["results"][:2].tolist() == [returns[64], returns[128]]
    assert evaluations["ep_lengths"][:2].tolist() == lengths[:2]
    is_kept = (resumed / "best_model.zip").read_bytes() == (original / "best_model.zip").read_bytes()
    # The agent of step 256 is not known at the checkpoint
    assert is_kept == (best == 64)


def test_recorded_video_shows_something(trained: Path) -> None:
    process = start(trained, "record-video", "--algo", "agdppo", "--env", ENV, "-f", "logs", "-n", "10", "-o", "videos")
    _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode != 0:
        skip_where_nothing_is_drawn(ENV, errors)
    (video,) = (trained / "videos").glob("*.mp4")
    from moviepy import VideoFileClip

    with VideoFileClip(str(video)) as clip:
        frames = np.stack(list(clip.iter_frames()))
    assert len(frames) >= 10
    assert frames.mean() > 20
    assert frames.std() > 20
    assert (frames[0] != frames[-1]).any()


def test_evaluations_and_training_can_be_plotted(trained: Path) -> None:
    out = run_here(trained, "all-plots", "-a", "agdppo", "-e", ENV, "-f", "logs", "-o", "results", "--no-display")
    assert "AGDPPO" in out
    assert ENV in out
    run_here(trained, "plot-from-file", "-i", "results", "--boxplot", "-o", "figure.png", "--format", "png")
    assert (trained / "figure.png").stat().st_size > 1000
    run_here(trained, "plot-train", "-a", "agdppo", "-e", ENV, "-f", "logs", "-w", "2")


def test_benchmark_evaluates_all_agents_of_a_folder(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # As earlier versions wrote it if a setting was a function
    unreadable = trained / "logs" / "ppo" / f"{ENV}_1" / ENV / "args.yml"
    unreadable.parent.mkdir(parents=True)
    unreadable.write_text("hyperparams:\n  learning_rate: !!python/name:rl_zoo3.utils.%3Clambda%3E ''\n")
    out = run_here(trained, "benchmark", "--log-dir", "logs", "--benchmark-dir", "results", "-n", EPISODE, "--", "--seed", "3")
    assert f"agdppo on {ENV}: " in out
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"Left out: logs/ppo/{ENV}_1/{ENV}/args.yml: ")
    lines = (trained / "results" / "benchmark.md").read_text().splitlines()
    columns, row = (dict(enumerate(cell.strip() for cell in line.strip("|").split("|"))) for line in (lines[0], lines[2]))
    table = {columns[number]: row[number] for number in columns}
    assert (table["algo"], table["env"], table["training steps"]) == ("agdppo", ENV, "256")
    # As `enjoy` shows it
    out = run_here(trained, *ENJOY, "--seed", "3")
    (mean,) = (line.split()[2] for line in out.splitlines() if line.startswith("Mean reward"))
    assert float(table["mean return"]) == pytest.approx(float(mean), abs=0.01)
    assert f"{table['episodes']} Episodes" in out
