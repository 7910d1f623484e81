"""Frozen dataclasses: trajectory, frame, text and action transforms."""
