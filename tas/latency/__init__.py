"""Latency that was measured, as a cost: a table over the layers of a network, on the target where it is to be fast."""

from tas.latency.checking import Check, check
from tas.latency.measuring import latencies, measure_latency
from tas.latency.table import MEASURE, Table, read, with_latency
from tas.latency.target import Target

__all__ = ["MEASURE", "Check", "Table", "Target", "check", "latencies", "measure_latency", "read", "with_latency"]
