"""A headless Chromium, if this machine has one."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--no-first-run", "--virtual-time-budget=4000", "--window-size=1200,900"),
    *("--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--disable-sync", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(FOUND is None, reason=f"needs one of {', '.join(NAMES)} on the PATH")


def dom(page: Path, profile: Path, *flags: str) -> str:
    """The page's markup after its scripts have run."""
    command = [str(FOUND), *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def text_of(markup: str, id: str) -> str:
    """The text inside the element with this id; the element must hold no other of its own kind."""
    found = re.search(rf'<(\w+)[^>]*\bid="{id}"[^>]*>(.*?)</\1>', markup, re.S)
    assert found, f"no element {id}"
    return html.unescape(re.sub(r"<[^>]+>", "", found[2]))
