"""Latents and text embeddings of a store, computed once for training."""
