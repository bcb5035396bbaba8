"""Does the cache keep its promises, whatever is called in whatever order? (Hypothesis against a dict.)"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.model.machine import CacheMachine

EXAMPLES = int(os.environ.get("PEGASHM_MODEL_EXAMPLES", "60"))


@pytest.mark.timeout(600)
class TestCacheModel(CacheMachine.TestCase):  # type: ignore[name-defined,misc]
    """Hypothesis makes the test method of it."""

    settings = settings(
        settings.get_profile("pegashm"), max_examples=EXAMPLES, stateful_step_count=40
    )
