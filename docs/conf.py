"""How Sphinx builds this documentation."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html import HTML5Translator

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import notebooks

import xplstm

project = "xplstm"
author = "the xplstm developers"
copyright = "2026, the xplstm developers"
version = release = xplstm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
# A name in single backticks becomes a link where the API has it.
default_role = "autolink"

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

# The docstrings say types in words and with shapes; annotations would say them again, and less.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_validation_checks = {
    "all",
    "ES01",  # a summary may say it all
    "EX01",  # tests/docs/test_doctests.py asks for examples, and knows who needs none
    "PR04",  # "x, state, lengths: as for a call" describes several at once, and has no types
    "PR06",  # "boolean array" is a dtype and no type
    "PR07",  # `num_layers : int, default 1` says it all
    "PR08",  # a description may begin with a name
    "RT03",  # a shape may say it all
    "RT04",
    "SA01",  # single backticks link in the text
    "SS05",  # takes every plural for a verb
}
# Handed to users, not made by them: their attributes are described instead of their constructor's parameters.
numpydoc_validation_exclude = {
    rf"\.{name}$"
    for name in (
        "Backtest",
        "Checkpoint",
        "Event",
        "Explanation",
        "FormatError",
        "FrozenLSTM",
        "FrozenRNN",
        "GRUTrace",
        "GradientReport",
        "Gradients",
        "GradientRow",
        "History",
        "Group",
        "Hypothesis",
        "LSTMParams",
        "LSTMState",
        "LSTMTrace",
        "Prepared",
        "QuantisationReport",
        "QuantisationRow",
        "Model",
        "Optimizer",
        "Ragged",
        "WithFuture",
    )
} | {
    # Methods of a class that refer to those of its protocol, where the parameters are described.
    r"\.(Local|MPI|Torch)Group\.(exchange|gather)$",
    r"\.models\.\w+\.count$",
    r"\.training\.Group$",
}

html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"xplstm {version}"


def setup(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers show by themselves: no script, and nothing from a network."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    # Before the pages are read, which link to them.
    notebooks.write(Path(__file__).parent / "_build" / "notebooks")


def visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f"<div>{tex2mathml(node.astext(), as_block=True)}</div>")
    raise nodes.SkipNode


# A prompt and the output after it are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
