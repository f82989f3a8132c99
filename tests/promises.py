"""What is promised of any network, asserted of one: for the tests that go through many."""

import time
from typing import Any

from torch import nn

import tas
from tas.testing import check_space

SECONDS = 10  # processor time of a trace on one thread
SHARE = 0.25  # of the MACs, that the smallest architecture may keep


def assert_promises(network: nn.Module, inputs: Any) -> None:
    """Traced in seconds, three quarters of the MACs can go, the laws hold: smallest, random and single-choice ones."""
    start = time.process_time()
    tas.trace(network, inputs)
    seconds = time.process_time() - start
    assert seconds <= SECONDS
    space = check_space(network, inputs, architectures=1).space
    assert tas.macs(space, space.smallest()) <= SHARE * tas.macs(space, space.largest())
