"""Simulated experts that write stores."""
