"""Packaging of sb3_agd. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
# What options of the RL-Zoo commands need besides: TensorBoard, plots, rendering
zoo = ["tensorboard", "rl_zoo3[plots]", "matplotlib", "gymnasium[classic-control,mujoco]"]
docs = ["sphinx", "furo", "myst-parser"]

setup(
    name="sb3_agd",
    version=(root / "sb3_agd" / "version.txt").read_text().strip(),
    description="Advantage-guided diffusion world models for Stable-Baselines3",
    long_description=(root / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    # The settings lie at the root of the repository, where RL-Zoo users look for them, and in the package once installed
    packages=[*find_packages(include=["sb3_agd", "sb3_agd.*"]), "sb3_agd.hyperparams"],
    package_dir={"sb3_agd.hyperparams": "hyperparams"},
    package_data={"sb3_agd": ["py.typed", "version.txt"], "sb3_agd.hyperparams": ["*.yml"]},
    entry_points={"console_scripts": ["sb3-agd=sb3_agd.zoo.cli:main"]},
    python_requires=">=3.10",
    install_requires=[
        "stable_baselines3>=2.9,<3.0",
        "torch>=2.13",
        "gymnasium>=1.0",
        "numpy>=1.26",
        "tqdm",
        "rich",
        "rl_zoo3>=2.9,<3.0",
        # rl_zoo3 imports it without saying so
        "requests",
        "pyyaml",
        "cloudpickle",
    ],
    extras_require={
        "mujoco": ["gymnasium[mujoco]"],
        "zoo": zoo,
        "wandb": ["wandb", "tensorboard"],
        "benchmarks": ["gymnasium[mujoco]", "sb3_contrib>=2.9,<3.0", "matplotlib", "pandas", "rliable", "scipy", "seaborn"],
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
        ],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
