"""The versions that the package says it works with."""

from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CONSTRAINTS = Path(__file__).parents[1] / "constraints-oldest.txt"


def versions(requirements: list[str], operator: str) -> dict[str, Version]:
    """Version that each requirement names with the operator."""
    return {
        canonicalize_name(requirement.name): Version(specifier.version)
        for requirement in map(Requirement, requirements)
        for specifier in requirement.specifier
        if specifier.operator == operator
    }


def test_the_smoke_run_on_the_oldest_versions_is_at_the_lower_bounds() -> None:
    lines = CONSTRAINTS.read_text().splitlines()
    pins = versions([line for line in lines if line and not line.startswith("#")], "==")
    requirements = requires("sb3_agd") or []
    bounds = versions([text for text in requirements if "extra ==" not in text], ">=")
    assert bounds
    assert {name: pins.get(name) for name in bounds} == bounds
    # Extras that the run needs, too
    bounds = versions(requirements, ">=")
    assert {name: bounds.get(name) for name in pins} == pins
