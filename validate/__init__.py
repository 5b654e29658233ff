"""Runs models and judges them. Imports neither `calibrate` nor `reports`."""
