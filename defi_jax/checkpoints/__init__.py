"""Checkpoints: complete or absent, and verified."""
