"""Runs of a suite: what is skipped, kept, made again and reported as failed."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from processes import PATIENCE
from small_suite import SMALL, call, evaluations, outcome

from benchmarks import run
from benchmarks.run import Outcome
from benchmarks.suite import Run, Suite


def test_finished_runs_are_skipped(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (suite_file, "--results", tmp_path)
    call(run, monkeypatch, *arguments)
    assert executed == [str(one) for one in Suite.load(str(suite_file)).runs()]
    executed.clear()
    # An interruption between the two files of a run, a truncated file, and settings that are no longer those of the run
    (tmp_path / "small" / "ppo-Hopper-v5-3.json").unlink()
    (tmp_path / "small" / "ppo-Hopper-v5-4.csv").write_text(evaluations([0.0]))
    suite_file.write_text(SMALL.replace("guidance: eag", "guidance: eag, horizon: 4"))
    call(run, monkeypatch, *arguments)
    assert executed == ["agdppo_eag-HalfCheetah-v5-3", "ppo-Hopper-v5-3", "agdppo_eag-Hopper-v5-3", "ppo-Hopper-v5-4"]
    executed.clear()
    call(run, monkeypatch, *arguments, "--again", "--only", "agdppo_eag")
    assert executed == ["agdppo_eag-HalfCheetah-v5-3", "agdppo_eag-Hopper-v5-3"]


@pytest.mark.parametrize(
    "change", [("steps: 200", "steps: 100"), ("steps: 200\neval_freq: 100", "steps: 400\neval_freq: 200")]
)
def test_runs_of_another_length_are_made_again(
    change: tuple[str, str], suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    suite_file.write_text(SMALL.replace(*change))
    assert all(one.saved(tmp_path / "small") is None for one in Suite.load(str(suite_file)).runs())


def test_a_result_that_cannot_be_written_ends_the_suite(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, tried_to_save = run.execute, threading.Event()

    def execute_in_turn(one: Run) -> Outcome:
        if executed:
            # So that there is a run under way when the first one's result cannot be written
            tried_to_save.wait(PATIENCE)
            time.sleep(0.2)
        return execute(one)

    def save(*_: object) -> str:
        tried_to_save.set()
        raise OSError("No space left on device")

    monkeypatch.setattr(run, "execute", execute_in_turn)
    monkeypatch.setattr(run, "save", save)
    # Like an error that ends the program, this one holds on to everything that was at work
    with pytest.raises(OSError, match="No space left") as held:
        call(run, monkeypatch, suite_file, "--results", tmp_path)
    assert held.value.__traceback__ is not None
    time.sleep(1)
    assert len(executed) <= 2 < len(Suite.load(str(suite_file)).runs())


def test_a_record_is_never_that_of_other_evaluations(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(run, monkeypatch, suite_file, "--results", tmp_path)

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(run, "replaced_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        call(run, monkeypatch, suite_file, "--results", tmp_path, "--again", "--only", "agdppo_eag")
    folder = tmp_path / "small"
    first, second = ("agdppo_eag-HalfCheetah-v5-3", "agdppo_eag-Hopper-v5-3")
    assert not (folder / f"{first}.json").exists() and (folder / f"{second}.json").exists()


def test_measurements_of_guidance_are_never_those_of_an_earlier_run(suite_file: Path, tmp_path: Path) -> None:
    one = Suite.load(str(suite_file)).runs()[0]
    measured = replace(outcome([0.0, 1.0]), gains="timesteps,true_gain\n100,0.5\n")
    for each in (measured, outcome([0.0, 1.0])):
        run.save(one, each, tmp_path)
        assert (tmp_path / f"{one}.gains.csv").is_file() == (each is measured)


def test_record_holds_what_made_the_run(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    record = json.loads((tmp_path / "small" / "agdppo_eag-Hopper-v5-3.json").read_text())
    assert record["task"] == "Hopper-v5" and record["seed"] == 3 and record["commit"] == run.commit()
    # From the variant, from the settings file, from the signature
    assert record["hyperparameters"]["guidance"] == "eag"
    assert record["hyperparameters"]["max_grad_norm"] == 0.7
    assert record["hyperparameters"]["n_denoising_steps"] == 2


def test_runs_made_before_an_argument_existed_are_made_again(
    suite_file: Path, tmp_path: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    executed.clear()
    file = tmp_path / "small" / "agdppo_eag-Hopper-v5-3.json"
    record = json.loads(file.read_text())
    del record["hyperparameters"]["real_data_ratio"]
    file.write_text(json.dumps(record))
    call(run, monkeypatch, suite_file, "--results", tmp_path)
    assert executed == ["agdppo_eag-Hopper-v5-3"]


def test_failed_run_is_reported_and_the_others_go_on(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def execute(one: Run) -> Outcome:
        if str(one) == "agdppo_eag-HalfCheetah-v5-3":
            raise OSError("no process left")
        return outcome(None, "start\nout of luck") if one.name == "agdppo_eag" else outcome([0.0, 1.0])

    monkeypatch.setattr(run, "execute", execute)
    with pytest.raises(SystemExit, match="2 of 6 runs failed: agdppo_eag-HalfCheetah-v5-3, agdppo_eag-Hopper-v5-3"):
        call(run, monkeypatch, suite_file, "--results", tmp_path)
    printed = capsys.readouterr().out
    assert "agdppo_eag-Hopper-v5-3 failed after 1 s:\nstart\nout of luck" in printed
    assert "agdppo_eag-HalfCheetah-v5-3 failed after 0 s:\nOSError: no process left" in printed
    assert len(list((tmp_path / "small").glob("*.json"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smoke", "--only", "a2c"], "no variant a2c, only ppo, agdppo"),
        (["smoke", "--jobs", "0"], "--jobs must be at least 1"),
        (["smoke", "--address", "auto"], "--address needs --backend ray"),
        (["smog"], "There is no suite 'smog'"),
    ],
)
def test_mistakes_on_the_command_line_are_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        call(run, monkeypatch, *arguments)
    assert message in capsys.readouterr().err
