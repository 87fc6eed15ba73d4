"""Measurements whose results are kept under ``results/``, each with the hardware and versions it was taken on."""
