"""Results -> people: what a run found, as pages, text and records that somebody reads.

- `reports.html`: one self-contained HTML page (`render`, `write`), and its figures as plotly data
- `reports.terminal`: what the command line prints when a run is over
- `reports.format`: how numbers and words are written, shared by all of them

Imports only from `validate`, never from `calibrate`: a report knows nothing but `validate.results.Results`,
so it can be made again from ``results.json`` without running anything. This module imports nothing, so that
the command line starts at once.
"""
