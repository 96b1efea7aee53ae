"""Benchmarks: each command measures in one run, side by side, and writes JSON. See README.md."""
