"""What people read: tables on the console (`tables`), pictures (`pictures`), one self-contained page (`page`).

All of it is made from the files of a run folder, so that a report can be written again at any time.
"""

from tas.reporting.page import write_report

__all__ = ["write_report"]
