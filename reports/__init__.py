"""Results -> people: what a run found, as pages, text and records that somebody reads.

- `reports.pages.run`: the HTML page about a run (`render`, `write`); its figures, as plotly data, are in `reports.figures.run`,
  `reports.figures.tradeoff` and `reports.figures.illustrations`; `reports.pages.samples` has changes by class
- `reports.pages.comparison`: the same about a layer-wise comparison; its figures are in `reports.figures.comparison`
- `reports.pages.page`: what both pages have in common: one self-contained file that loads nothing and runs no foreign script
- `reports.terminal.run`, `reports.terminal.comparison`: what the command line prints
- `reports.tracking`: MLflow; `reports.commands.reports`: ``python -m reports``, which makes all of it again from a results.json
- `reports.format`: how numbers and words are written, shared by all of them

Imports only from `validate`, never from `calibrate`: a report knows nothing but `validate.results.run.Results`, with what
lies beside it, or `validate.layerwise.comparison.Comparison`, so it can be made again from their files without running anything.
This module imports nothing, so that the command line starts at once.
"""
