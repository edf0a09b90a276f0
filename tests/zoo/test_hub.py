"""Agents on the Hugging Face hub."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml


def test_an_agent_goes_to_the_hub_and_comes_back(
    tmp_path: Path, command_line: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub"

    class FolderInPlaceOfTheHub:
        def create_repo(self, repo_id: str, **kwargs: Any) -> str:
            return repo_id

        def upload_folder(self, repo_id: str, folder_path: Path, **kwargs: Any) -> None:
            shutil.copytree(folder_path, hub / repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi", FolderInPlaceOfTheHub)
    monkeypatch.setattr("huggingface_sb3.load_from_hub", lambda repo_id, file: str(hub / repo_id / file))
    monkeypatch.chdir(tmp_path)
    agent = ["--algo", "agdppo", "--env", "Hopper-v5"]
    command_line("train", *agent, "-n", "32", "--eval-freq", "-1", "--device", "cpu", "-params", "n_steps:32")
    command_line("push-to-hub", *agent, "-f", "logs", "-orga", "me", "-n", "300", "--", "--seed", "1")
    card = (hub / "me" / "agdppo-Hopper-v5" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])["model-index"][0]
    assert metadata["name"] == "AGDPPO"
    assert metadata["results"][0]["dataset"]["name"] == "Hopper-v5"
    assert float(metadata["results"][0]["metrics"][0]["value"].split()[0]) > 0
    assert "sb3-agd load-from-hub --algo agdppo --env Hopper-v5 -orga me -name agdppo-Hopper-v5" in card
    command_line("load-from-hub", *agent, "-f", "loaded", "-orga", "me")
    command_line("enjoy", *agent, "-f", "loaded", "--no-render", "-n", "100")
    out = capsys.readouterr().out
    assert "loaded/agdppo/Hopper-v5_1" in out and "Loading running average" in out
