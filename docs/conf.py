"""Configuration of the documentation; it builds without a network."""

import inspect

import sklearn_cfll

project = "sklearn_cfll"
author = "the sklearn_cfll developers"
copyright = f"2026, {author}"
version = release = sklearn_cfll.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
# All but the first are included by another page.
exclude_patterns = [
    "_build",
    "benchmarks/calibration.rst",
    "benchmarks/cheaper_heads.rst",
    "benchmarks/coverage.rst",
    "benchmarks/fields.rst",
    "benchmarks/growth.rst",
    "benchmarks/iv.rst",
    "benchmarks/iv_tables.rst",
    "benchmarks/leave_one_out.rst",
    "benchmarks/peers.rst",
    "benchmarks/peers_by_table.rst",
    "benchmarks/peers_slow.rst",
    "benchmarks/peers_td.rst",
    "benchmarks/predict.rst",
    "benchmarks/rate_range.rst",
    "benchmarks/step_cost.rst",
    "benchmarks/streaming_300.rst",
    "benchmarks/time_to_quality.rst",
]
default_role = "code"

# A broken reference is an error, except to packages whose index isn't at hand.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(numpy|np|pandas|polars|scipy|sklearn|skorch|torch)\..*"),
]

autodoc_typehints = "none"
numpydoc_show_class_members = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"(^|/)_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"sklearn_cfll {version}"
html_show_sourcelink = False
html_theme_options = {"navbar_end": ["theme-switcher"], "show_prev_next": False}


def skip_foreign_members(app, what, name, obj, skip, options):
    """Leave out what a class inherits from scikit-learn, skorch or torch."""
    function = inspect.unwrap(getattr(obj, "fget", None) or obj)
    module = getattr(function, "__module__", None) or ""
    return skip or not module.startswith("sklearn_cfll")


def setup(app):
    """Connect the hook above."""
    app.connect("autodoc-skip-member", skip_foreign_members)
