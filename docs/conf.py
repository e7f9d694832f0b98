"""Sphinx settings: `make docs`."""

from importlib.metadata import version as installed_version

project = "Gossamer"
author = "The Gossamer contributors"
version = release = installed_version("gossamer")

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "Gossamer"
