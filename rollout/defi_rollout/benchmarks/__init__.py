"""Benchmarks that score a bundle in a simulator."""
