"""Benchmarks' own protocols."""
