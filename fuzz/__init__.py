"""Hostile input, made on purpose: see fuzz/run.py and docs/reliability.md."""
