"""Measured latency: seconds of one forward, the networks in turns, so that what slows the machine slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tas.calibration import modes_restored
from tas.training import call

_SHORTEST = 0.002  # seconds of one measurement: a forward of microseconds is repeated, the clock and Python cost some


@dataclass(frozen=True)
class Latency:
    """Of one forward in milliseconds: the median over the repeats and their quartiles."""

    median: float
    low: float
    high: float


def interleaved(
    networks: Sequence[nn.Module], inputs: Any, device: torch.device | str = "cpu", repeats: int = 20
) -> list[Latency]:
    """Latency of each network on a batch of `inputs`, in eval mode, without gradients, with the threads that torch has.

    Every repeat runs all networks, each repeat starting with another one. The networks stay on `device`.
    """
    if repeats < 2:
        raise ValueError(f"a spread needs at least 2 repeats, got {repeats}")
    device = torch.device(device)
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(modes_restored(network))
            network.to(device).eval()
        stack.enter_context(torch.inference_mode())
        return _measured(networks, inputs, device, repeats)


def _measured(networks: Sequence[nn.Module], inputs: Any, device: torch.device, repeats: int) -> list[Latency]:
    forwards = [partial(call, network, inputs) for network in networks]
    calls = [calls_for(forward, device) for forward in forwards]
    taken: list[list[float]] = [[] for _ in networks]
    for repeat in range(repeats):
        for place in range(len(networks)):
            which = (place + repeat) % len(networks)
            taken[which].append(1e3 * seconds(forwards[which], device, calls[which]))
    return [summary(samples) for samples in taken]


def summary(samples: Sequence[float]) -> Latency:
    """Of two or more measurements in milliseconds."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Latency(median, low, high)


def calls_for(forward: Callable[[], Any], device: torch.device) -> int:
    """How many forwards make a measurement that is long enough, after the first ones, which choose kernels and
    allocate."""
    seconds(forward, device, 2)
    return max(1, math.ceil(_SHORTEST / seconds(forward, device, 1)))


def seconds(forward: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """A forward, the mean of `calls` of them; the device is waited for before and after."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        forward()
    _wait(device)
    return (time.perf_counter() - started) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
