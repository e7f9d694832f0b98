"""kill -9 at random moments: the run always resumes from its last complete checkpoint, bit for bit.

Two hundred kills, and several processes: `python -m tests.training.kill_many --help`.
"""

import os
from pathlib import Path

import pytest

from tests.training.kill_many import kill_many

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def test_a_killed_run_always_goes_on(tmp_path: Path) -> None:
    tally = kill_many(tmp_path, kills=10)
    assert tally["kills"] == 10
