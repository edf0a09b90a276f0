"""Packaging of sb3_agd. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent

setup(
    name="sb3_agd",
    version=(root / "sb3_agd" / "version.txt").read_text().strip(),
    description="Advantage-guided diffusion world models for Stable-Baselines3",
    long_description=(root / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["sb3_agd", "sb3_agd.*"]),
    package_data={"sb3_agd": ["py.typed", "version.txt"]},
    python_requires=">=3.10",
    install_requires=[
        "stable_baselines3>=2.9,<3.0",
        "torch>=2.8",
        "gymnasium>=1.0",
        "numpy>=1.26",
        "tqdm",
        "rich",
    ],
    extras_require={
        "mujoco": ["gymnasium[mujoco]"],
        "benchmarks": ["gymnasium[mujoco]", "sb3_contrib>=2.9,<3.0", "matplotlib", "pandas", "pyyaml"],
        "tests": ["pytest", "pytest-cov", "mypy", "ruff", "sb3_contrib>=2.9,<3.0", "tensorboard", "types-PyYAML"],
    },
    classifiers=[
        "License :: OSI Approved :: MIT License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
