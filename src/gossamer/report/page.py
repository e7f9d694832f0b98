"""One HTML file that holds its own style, script and data, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path
from string import Template

from ..atomic import write_file
from .data import ReportData
from .encoding import as_json

SCRIPTS = ("text.js", "chart.js", "mask.js", "plane.js", "page.js")


def write_report(path: str | Path, data: ReportData) -> None:
    """Writes `data` as one HTML file that any browser shows off-line; whole, or not at all.

    Raises:
        OSError: `path` cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, render(data).encode())


def render(data: ReportData) -> str:
    """The page as text, everything inlined, under a policy that admits its own script and style alone."""
    style, script = read_template("page.css"), "\n".join(read_template(name) for name in SCRIPTS)
    return Template(read_template("page.html")).substitute(
        policy=_policy(style, script),
        title=html.escape(data.title),
        style=style,
        script=script,
        data=as_json(data),
    )


def read_template(name: str) -> str:
    """One file of the page as it is kept in this package."""
    return Path(__file__).with_name("template").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy that names the two inlined texts by their hashes and forbids all else."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    allowed_style, allowed_script = (f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; style-src {allowed_style}; script-src {allowed_script}; "
        "base-uri 'none'; form-action 'none'"
    )
