"""Frozen encoders and tokenizers by name."""
