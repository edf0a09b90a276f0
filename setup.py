"""Packaging of sb3_agd. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
# rl_zoo3 imports requests without saying so, and huggingface_hub needs jinja2 for model cards
rl_zoo = ["rl_zoo3[plots]>=2.9,<3.0", "requests", "pyyaml", "jinja2"]
# With what options of its commands need: TensorBoard, plots, rendering
zoo = [*rl_zoo, "tensorboard", "matplotlib", "gymnasium[classic-control,mujoco]"]
docs = ["sphinx", "furo", "myst-parser", "sphinx-copybutton", "sphinx-mathjax-offline"]


def long_description() -> str:
    """README without relative images, their captions, and relative links: they lead nowhere outside of the repository."""
    target = r"\((?!https?://)[^)]*\)"
    text = re.sub(rf"!\[[^\]]*\]{target}\n+(\*[^*]+\*\n+)?", "", (root / "README.md").read_text())
    return re.sub(rf"\[([^\]]+)\]{target}", r"\1", text)


setup(
    name="sb3_agd",
    version=(root / "sb3_agd" / "version.txt").read_text().strip(),
    description="Advantage-guided diffusion world models for Stable-Baselines3",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license_expression="MIT",
    keywords=[
        *("reinforcement-learning", "model-based-reinforcement-learning", "world-models", "diffusion-models"),
        *("stable-baselines3", "ppo", "gymnasium", "pytorch"),
    ],
    project_urls={
        "Paper": "https://arxiv.org/abs/2604.09035",
        "Stable-Baselines3": "https://stable-baselines3.readthedocs.io",
    },
    # The settings lie at the root of the repository, where RL-Zoo users look for them, and in the package once installed
    packages=[*find_packages(include=["sb3_agd", "sb3_agd.*"]), "sb3_agd.hyperparams"],
    package_dir={"sb3_agd.hyperparams": "hyperparams"},
    package_data={"sb3_agd": ["py.typed", "version.txt", "hub/model_card.jinja"], "sb3_agd.hyperparams": ["*.yml"]},
    entry_points={"console_scripts": ["sb3-agd=sb3_agd.zoo.cli:main"]},
    python_requires=">=3.10",
    install_requires=[
        "stable_baselines3>=2.9,<3.0",
        # As Stable-Baselines3 2.9
        "torch>=2.8",
        "gymnasium>=1.0",
        "numpy>=1.26",
        "tqdm",
        "cloudpickle",
    ],
    extras_require={
        "mujoco": ["gymnasium[mujoco]"],
        "zoo": zoo,
        "wandb": [*zoo, "wandb"],
        "benchmarks": [*rl_zoo, "sb3_contrib>=2.9,<3.0", "matplotlib", "rich", "gymnasium[mujoco]"],
        "cluster": ["ray"],
        "docs": docs,
        "tests": [
            *zoo,
            *docs,
            "ray",
            "hypothesis",
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "mypy",
            "ruff",
            "sb3_contrib>=2.9,<3.0",
            "types-PyYAML",
            "build",
            "setuptools>=77",
            "twine",
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
