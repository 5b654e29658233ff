"""Results for people: pages, terminal output, CI files and MLflow runs.

- `pages`: the HTML pages about a run and about a layer-wise comparison; `figures`: what they draw, as plotly data
- `terminal`: output of the command lines; `commands`: the command lines of `validate` and `reports`
- `release`: judge again, JUnit XML, Markdown, the model registry; `tracking`: MLflow
- `format`: how numbers and words are written, shared by all of them

Imports only from `validate`, never from `calibrate`: a report is made from results and the files beside them alone, so
that it can be made again without running anything. This module imports nothing, so that the command line starts at
once.
"""
