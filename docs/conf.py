"""How Sphinx builds the documentation: ``make docs``."""

from docutils.nodes import document
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

from sb3_agd import __version__

project = "sb3_agd"
author = "The sb3_agd authors"
release = __version__

# Not sphinx.ext.intersphinx: it fetches the inventories of other projects, and pages are built without network
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
# Links such as page.md#section
myst_heading_anchors = 3
# Formulas between dollar signs
myst_enable_extensions = ["dollarmath"]

# Types stand in the signatures only
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"sb3_agd {release}"


def find_by_last_name(app: Sphinx, page: document) -> None:
    """
    Let docstrings name classes and functions without their module: ``:class:`Settings```.

    :param app: Sphinx
    :param page: A page, its references not yet resolved
    """
    for reference in page.findall(pending_xref):
        if reference["refdomain"] == "py":
            reference["refspecific"] = True


def setup(app: Sphinx) -> None:
    """
    :param app: Sphinx, which calls this
    """
    app.connect("doctree-read", find_by_last_name)
