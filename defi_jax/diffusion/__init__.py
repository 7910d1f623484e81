"""Diffusion mathematics: pure functions of arrays."""
