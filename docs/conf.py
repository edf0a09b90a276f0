"""How Sphinx builds the documentation: ``make docs``."""

from sb3_agd import __version__

project = "sb3_agd"
author = "The sb3_agd authors"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
# Links such as page.md#section
myst_heading_anchors = 3

# Types stand in the signatures only
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"sb3_agd {release}"
