"""The documentation as a site: `sphinx-build -W -n docs build/site`, after `pip install -e '.[docs]'`."""

from jaxlm import __version__

project = "jaxlm"
author = "the authors of jaxlm"
version = release = __version__
html_title = "jaxlm"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["proof"]  # logs of long checks, which `proven` names
html_theme = "furo"
html_copy_source = False
html_show_copyright = False

# Links between files may name a heading, as GitHub does: `plans.md#what-a-plan-knows`.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
# What a signature names is documented in the source, or elsewhere; what a page names must be here.
nitpick_ignore_regex = [("py:.*", r".*")]

# Output, JSON and plain text: there is nothing to colour, or not everywhere.
highlight_language = "none"
