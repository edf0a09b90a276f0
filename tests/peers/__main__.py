"""
Run the tests of the installed Stable-Baselines3, sb3-contrib and RL-Zoo as they are, and once more with AGDPPO in the place
of PPO, A2C and TRPO::

    python tests/peers [sb3] [contrib] [zoo] [--results FILE]

Their tests come with their source releases, which are downloaded into a temporary folder. Only tests that make one of the
three algorithms and that pass with them count. AGDPPO passes a test if the test passes and, where the algorithm it
replaces was updated, each of AGDPPO's updates had imagined data (some of them, where the test puts random numbers into its
networks, and nine tenths of them in tests of learning). What it does not pass runs a third time, with PPO itself in the
same place: what PPO fails there as well is counted apart.

Tests that judge what was learned from a thousand steps are a matter of luck with one seed, for PPO too. They run with
several, with AGDPPO and with PPO in the same place, and AGDPPO fails one if it passes with fewer seeds than PPO and that is
hardly a matter of luck.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scipy.stats import fisher_exact

PEERS = {"sb3": "stable_baselines3", "contrib": "sb3_contrib", "zoo": "rl_zoo3"}
# Packages that the tests import and this project does not need
NEEDED_BY_TESTS = ["ale-py==0.12.1", "opencv-python-headless==5.0.0.93", "box2d==2.3.10"]
# What the releases of RL-Zoo leave out: the scripts at the root of its repository
ZOO_SCRIPTS = {"train.py": "rl_zoo3.train", "enjoy.py": "rl_zoo3.enjoy"}
# What AGDPPO refuses on purpose: the reason, and how the message of the failure begins
REFUSALS = {
    "image observations": r"ValueError: The observation space Box\(.* is not supported: .* Turn images into feature vectors",
    "dictionary observations with images": r"ValueError: The observation space Dict\(.* is not supported",
    "a rollout buffer without room for imagined data": r"ValueError: `rollout_buffer_class` must be a subclass of Augmented",
}
# Tests of what AGDPPO does otherwise on purpose, by the beginning of their names
OTHERWISE = {
    "tests/test_logger.py::test_fps_logger": "a minimum of speed with rollouts of 5 steps: AGDPPO takes time to imagine",
}
# Tests that put random numbers into all networks, by the beginning of their names: AGDPPO does not imagine with them then
SCRAMBLING = ("tests/test_save_load.py::test_save_load[",)
# Tests that judge what was learned, by the beginning of their names, and the seeds that they run with
TESTS_OF_LEARNING = "tests/test_identity.py"
SEEDS = range(20, 30)
# AGDPPO fails such a test where passing with as few seeds is less probable than this for an algorithm as good as PPO, by
# Fisher's exact test: 6 of 10 where PPO passes with all
MAX_P_VALUE = 0.05
# ... and where imagined data are at work in fewer of its updates: the first ones, in A2C's place 19 of 240, do without
MIN_SHARE_AT_WORK = 0.9
# How a file of tests tells that it may make one of the algorithms, in Python or on RL-Zoo's command line
MENTION = r"import .*\b(PPO|A2C|TRPO)\b|\b(ppo|a2c|trpo)\b"
Log = dict[str, list[dict[str, Any]]]
# For each test of learning, the number of seeds that an algorithm passes it with
PassRates = dict[str, dict[str, int]]


def download(package: str, folder: Path) -> Path:
    """
    :param package: An installed package
    :param folder: Where to unpack
    :return: Folder of its source release, without the package itself, so that the installed one is tested
    """
    requirement = f"{package}=={version(package)}"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "download", "--no-deps", "--no-binary", package, requirement, "-d", str(folder)], check=True)
    (archive,) = folder.glob(f"{package}-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    release = folder / archive.name.removesuffix(".tar.gz")
    shutil.rmtree(release / package)
    return release


def prepare_zoo(release: Path, environment: dict[str, str]) -> None:
    """
    Add what RL-Zoo's tests expect at the root of its repository: scripts, and a trained agent.

    :param release: Folder of the source release
    :param environment: Environment variables of its tests
    """
    for script, module in ZOO_SCRIPTS.items():
        (release / script).write_text(
            f'import runpy\n\nimport stand_in\n\nrunpy.run_module("{module}", run_name="__main__")\n'
        )
    # That of an earlier run comes from another algorithm
    shutil.rmtree(release / "rl-trained-agents", ignore_errors=True)
    train = [sys.executable, "train.py", "--algo", "a2c", "--env", "CartPole-v1", "-n", "100", "-f", "rl-trained-agents"]
    subprocess.run(train, cwd=release, env=environment, check=True, stdout=subprocess.DEVNULL)


def run(release: Path, log: Path, environment: dict[str, str], tests: list[str] | None = None) -> Log:
    """
    :param release: Folder with the tests
    :param log: File to write down what happens
    :param environment: Environment variables of the tests
    :param tests: Tests to run, ``None`` for all in files that mention one of the algorithms
    :return: For each test, what happened in it
    """
    environment = environment | {"PEERS_LOG": str(log)}
    if tests is None:
        files = [path for path in (release / "tests").glob("test_*.py") if re.search(MENTION, path.read_text())]
    else:
        selection = log.with_suffix(".selection")
        selection.write_text(json.dumps(tests))
        environment["PEERS_SELECTION"] = str(selection)
        files = sorted({release / test.split("::")[0] for test in tests})
    names = sorted(str(path.relative_to(release)) for path in files)
    if (release / "hyperparams").is_dir():
        prepare_zoo(release, environment)
    options = ["-q", "-p", "stand_in", "-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"]
    subprocess.run([sys.executable, "-m", "pytest", *options, *names], cwd=release, env=environment)
    events: Log = defaultdict(list)
    for line in log.read_text().splitlines():
        event = json.loads(line)
        events[event["test"]].append(event)
    return events


def failure(events: list[dict[str, Any]]) -> str | None:
    """
    :param events: What happened in a test
    :return: The message of its failure, ``None`` if it passed
    """
    outcomes = [event for event in events if event["event"] in ("passed", "failed", "skipped")]
    if not outcomes:
        return "did not run"
    return next((event["message"] or event["event"] for event in outcomes if event["event"] != "passed"), None)


def updates(events: list[dict[str, Any]]) -> list[int]:
    """
    :param events: What happened in a test
    :return: Number of imagined transitions in each update
    """
    return [event["n_imagined"] for event in events if event["event"] == "updated"]


def pass_rates(release: Path, folder: Path, environment: dict[str, str], tests: list[str]) -> PassRates:
    """
    :param release: Folder with the tests
    :param folder: Folder for the logs
    :param environment: Environment variables of the tests
    :param tests: Tests of learning
    :return: Their pass rates. A pass of AGDPPO counts if enough of its updates had imagined data
    """
    rates: PassRates = {test: {"AGDPPO": 0, "PPO": 0} for test in tests}
    if not tests:
        return rates
    for algorithm in ("AGDPPO", "PPO"):
        for seed in SEEDS:
            variables = environment | {"PEERS_STAND_IN": algorithm, "PEERS_SEED": str(seed)}
            log = run(release, folder / f"{release.name}-{algorithm}-{seed}.log", variables, tests)
            for test in tests:
                imagined = updates(log[test])
                at_work = algorithm == "PPO" or len(imagined) - imagined.count(0) >= MIN_SHARE_AT_WORK * len(imagined)
                rates[test][algorithm] += failure(log[test]) is None and len(imagined) > 0 and at_work
    return rates


def judge(test: str, theirs: Log, ours: Log, ppos: Log, rates: PassRates) -> tuple[str, str]:
    """
    :param test: Name of a test
    :param theirs: What happened in each test as it is
    :param ours: What happened with AGDPPO
    :param ppos: What happened with PPO in the same place, where that is known
    :param rates: Pass rates of the tests of learning
    :return: ``"passed"``, ``"refused"`` (also what is otherwise on purpose) with the reason, or ``"failed"`` or
        ``"PPO fails too"`` with the message
    """
    if test in rates:
        passes, ppos_passes = rates[test]["AGDPPO"], rates[test]["PPO"]
        message = f"passes with {passes} of {len(SEEDS)} seeds, PPO with {ppos_passes}"
        table = [[passes, len(SEEDS) - passes], [ppos_passes, len(SEEDS) - ppos_passes]]
        if fisher_exact(table, alternative="less").pvalue < MAX_P_VALUE:
            return "failed", message
        return ("passed", "") if passes > 0 else ("PPO fails too", message)
    message = failure(ours[test])
    if message is not None:
        reasons = [reason for reason, pattern in REFUSALS.items() if re.match(pattern, message, re.DOTALL)]
        reasons += [reason for beginning, reason in OTHERWISE.items() if test.startswith(beginning)]
        if reasons:
            return "refused", reasons[0]
        ppo_fails = any(event["event"] == "failed" for event in ppos.get(test, []))
        return "PPO fails too" if ppo_fails else "failed", message.splitlines()[0]
    if updates(theirs[test]) and not updates(ours[test]):
        return "failed", "AGDPPO was never updated"
    required = any if test.startswith(SCRAMBLING) else all
    if updates(ours[test]) and not required(updates(ours[test])):
        return "failed", f"{updates(ours[test]).count(0)} of {len(updates(ours[test]))} updates without imagined data"
    return "passed", ""


def compare(package: str, tests: list[str], theirs: Log, ours: Log, ppos: Log, rates: PassRates) -> dict[str, Any]:
    """
    :param package: The package whose tests ran
    :param tests: Tests that make one of the replaced algorithms and pass with them
    :param theirs: What happened in the tests as they are
    :param ours: What happened with AGDPPO
    :param ppos: What happened with PPO in the same place, in the tests that AGDPPO did not pass
    :param rates: Pass rates of the tests of learning
    :return: Figures and lists of tests
    """
    replaced: dict[str, Counter[str]] = defaultdict(Counter)
    refused: dict[str, list[str]] = defaultdict(list)
    messages: dict[str, dict[str, str]] = {"PPO fails too": {}, "failed": {}}
    passed = 0
    for test in tests:
        verdict, reason = judge(test, theirs, ours, ppos, rates)
        passed += verdict == "passed"
        for name in {event["algorithm"] for event in theirs[test] if event["event"] == "made"}:
            replaced[name][verdict] += 1
        if verdict == "refused":
            refused[reason].append(test)
        elif verdict in messages:
            messages[verdict][test] = reason
    imagined = [updates(ours[test]) for test in tests if updates(ours[test])]
    return {
        "version": version(package),
        "tests": len(tests),
        "passed": passed,
        "in the place of": {name: dict(counts) for name, counts in sorted(replaced.items())},
        "tests with updates": len(imagined),
        "updates": sum(map(len, imagined)),
        "imagined transitions": sum(map(sum, imagined)),
        "refused": refused,
        **messages,
        f"passes with {len(SEEDS)} seeds": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="peer", default=[*PEERS], help=f"any of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--results", type=Path, help="JSON file for the outcome; other peers' results in it are kept")
    args = parser.parse_args()
    unknown = set(args.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")

    results = json.loads(args.results.read_text()) if args.results is not None and args.results.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        packages = str(Path(folder) / "packages")
        pip = [sys.executable, "-m", "pip", "--quiet"]
        subprocess.run([*pip, "install", "--no-deps", "--target", packages, *NEEDED_BY_TESTS], check=True)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent.resolve()), packages]),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "PEERS_TESTS_OF_LEARNING": TESTS_OF_LEARNING,
        }
        for peer in args.peers:
            package = PEERS[peer]
            release = download(package, Path(folder))
            theirs = run(release, Path(folder) / f"{peer}-as-is.log", environment)
            tests = [
                test
                for test, events in theirs.items()
                if failure(events) is None and any(event["event"] == "made" for event in events)
            ]
            ours = run(release, Path(folder) / f"{peer}-agdppo.log", environment | {"PEERS_STAND_IN": "AGDPPO"}, tests)
            learning = [test for test in tests if test.startswith(TESTS_OF_LEARNING)]
            rates = pass_rates(release, Path(folder), environment, learning)
            failed = [test for test in tests if test not in rates and judge(test, theirs, ours, {}, rates)[0] == "failed"]
            ppo = environment | {"PEERS_STAND_IN": "PPO"}
            ppos = run(release, Path(folder) / f"{peer}-ppo.log", ppo, failed) if failed else {}
            results[package] = compare(package, tests, theirs, ours, ppos, rates)
            print(json.dumps(results[package], indent=2))
            if args.results is not None:
                args.results.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(any(results[PEERS[peer]]["failed"] for peer in args.peers))


if __name__ == "__main__":
    main()
