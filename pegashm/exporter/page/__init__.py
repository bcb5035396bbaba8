"""What does an operator see in a browser? The status page: its files, its data, and what it remembers.

`files.py` serves static/ (HTML, CSS, JavaScript modules, and uPlot as it comes from npm) under headers that let the page load
nothing from elsewhere. `state.py` says what is now (api/state), `occupancy.py` what lies where, `history.py` what was
(api/history), `noticed.py` what changed between two readings; `page.py` puts them behind routes and samples.
Reads through the exporter's `Reader` only, keeps a bounded amount of memory, and writes nothing anywhere.
"""

from pegashm.exporter.page.history import SAMPLE_SECONDS
from pegashm.exporter.page.page import Page

__all__ = ["SAMPLE_SECONDS", "Page"]
