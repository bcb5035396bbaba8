"""Does the cache keep its promises, whatever is called in whatever order? (Hypothesis against a dict.)"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests.model.machine import AdaptiveCacheMachine, CacheMachine

# Without a failure seconds; finding the smallest example of one takes minutes.
pytestmark = pytest.mark.timeout(900)

EXAMPLES = int(os.environ.get("PEGASHM_MODEL_EXAMPLES", "60"))
TestCacheModel = CacheMachine.TestCase
TestCacheModel.settings = settings(
    settings.get_profile("pegashm"), max_examples=EXAMPLES, stateful_step_count=40
)
TestAdaptiveCacheModel = AdaptiveCacheMachine.TestCase
TestAdaptiveCacheModel.settings = settings(
    settings.get_profile("pegashm"), max_examples=EXAMPLES, stateful_step_count=40
)
