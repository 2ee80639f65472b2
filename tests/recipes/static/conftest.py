"""The encoders, one after the other."""

import pytest
from encoders import MAKE


@pytest.fixture(params=MAKE)
def backbone(request):
    return MAKE[request.param]().eval()
