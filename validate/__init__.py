"""Runs models and judges them. Knows nothing of calibration, plans or reports, and imports neither."""
