"""Experiments: one file each, numbers only."""
