"""What people read: tables on the console (`tables`), pictures (`pictures`), one self-contained page about a run
(`page`), several (`runs`) or a comparison (`comparison`).

All of it is made from the files of a run folder, so that a report can be written again at any time.
"""

from tas.reporting.page import write_report
from tas.reporting.runs import write_runs

__all__ = ["write_report", "write_runs"]
