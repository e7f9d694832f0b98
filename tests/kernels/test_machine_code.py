"""Matrix instructions that are waited for one by one are found: in listings, and where a kernel is told to wait."""

from __future__ import annotations

import pytest

from tests.kernels.machine_code import one_by_one

MIDDLE = "        /*0010*/      HGMMA.64x64x16.F32.BF16 R56, R180, gdesc[UR16], R56 ;\n"
LAST = "        /*0020*/      HGMMA.64x64x16.F32.BF16 R56, R180, gdesc[UR16], R56, gsb0 ;\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (MIDDLE + MIDDLE + LAST, False),
        (MIDDLE + LAST + LAST, False),  # a product along 16 columns is a group of one
        (LAST + LAST + LAST, True),
        ("        /*0010*/      NOP ;\n", False),
    ],
)
def test_a_kernel_is_found_all_of_whose_instructions_end_groups(text: str, found: bool) -> None:
    assert one_by_one(text) is found
