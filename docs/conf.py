"""How Sphinx builds the documentation: ``make docs``."""

from docutils.nodes import Element, document, reference
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from sb3_agd import __version__

project = "sb3_agd"
author = "The sb3_agd authors"
copyright = author
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
# Links such as page.md#section
myst_heading_anchors = 3
# Formulas between dollar signs
myst_enable_extensions = ["dollarmath"]

# Types stand in the signatures only
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"

SB3 = "https://stable-baselines3.readthedocs.io/en/master"
GYMNASIUM = "https://gymnasium.farama.org/api"
TORCH = "https://docs.pytorch.org/docs/stable"
# Pages of other projects. sphinx.ext.intersphinx would fetch their inventories, and pages are built without network
OUTSIDE = {
    "collections.abc.Callable": "https://docs.python.org/3/library/collections.abc.html#collections.abc.Callable",
    "gymnasium.core.Env": f"{GYMNASIUM}/env/#gymnasium.Env",
    "gymnasium.envs.registration.EnvSpec": f"{GYMNASIUM}/registry/#gymnasium.envs.registration.EnvSpec",
    "gymnasium.spaces.space.Space": f"{GYMNASIUM}/spaces/#gymnasium.spaces.Space",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html#numpy.ndarray",
    "pathlib.Path": "https://docs.python.org/3/library/pathlib.html#pathlib.Path",
    "stable_baselines3.common.callbacks.BaseCallback": (
        f"{SB3}/guide/callbacks.html#stable_baselines3.common.callbacks.BaseCallback"
    ),
    "stable_baselines3.common.logger.Logger": f"{SB3}/common/logger.html#stable_baselines3.common.logger.Logger",
    "stable_baselines3.common.on_policy_algorithm.OnPolicyAlgorithm": (
        f"{SB3}/modules/base.html#stable_baselines3.common.on_policy_algorithm.OnPolicyAlgorithm"
    ),
    "stable_baselines3.common.vec_env.base_vec_env.VecEnv": (
        f"{SB3}/guide/vec_envs.html#stable_baselines3.common.vec_env.VecEnv"
    ),
    "stable_baselines3.common.vec_env.vec_normalize.VecNormalize": (
        f"{SB3}/guide/vec_envs.html#stable_baselines3.common.vec_env.VecNormalize"
    ),
    "torch.Tensor": f"{TORCH}/tensors.html#torch.Tensor",
    "torch._C.Generator": f"{TORCH}/generated/torch.Generator.html#torch.Generator",
    "torch.device": f"{TORCH}/tensor_attributes.html#torch.device",
    "torch.nn.modules.module.Module": f"{TORCH}/generated/torch.nn.Module.html#torch.nn.Module",
}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_title = f"sb3_agd {release}"


def find_by_last_name(app: Sphinx, page: document) -> None:
    """
    Let docstrings name classes and functions without their module: ``:class:`Settings```.

    :param app: Sphinx
    :param page: A page, its references not yet resolved
    """
    for node in page.findall(pending_xref):
        if node["refdomain"] == "py":
            node["refspecific"] = True


def link_to_other_projects(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> reference | None:
    """
    :param app: Sphinx
    :param env: What it knows of all pages
    :param node: A reference to nothing of this project
    :param content: What is shown of it
    :return: A link to the page of another project, if there is one
    """
    address = OUTSIDE.get(node["reftarget"])
    return reference("", "", content, internal=False, refuri=address) if address is not None else None


def setup(app: Sphinx) -> None:
    """
    :param app: Sphinx, which calls this
    """
    app.connect("doctree-read", find_by_last_name)
    app.connect("missing-reference", link_to_other_projects)
