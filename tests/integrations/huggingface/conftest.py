"""What every test of switched models runs under."""

import pytest
import torch

from tests.integrations.huggingface.families import FAMILIES


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return request.param


@pytest.fixture
def no_gradients():
    """No graph is made: only numbers are compared."""
    with torch.no_grad():
        yield
