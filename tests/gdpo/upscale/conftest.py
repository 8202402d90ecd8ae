"""The tiny model as a pipeline of diffusers."""

import pytest

from gdpo import NAOSDPipeline
from tests import tiny
from tests.gdpo.upscale.pipelines import of, quiet


@pytest.fixture
def pipe() -> NAOSDPipeline:
    return quiet(of(tiny.model()))
