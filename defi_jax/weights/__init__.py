"""Official weights in and out, as tables."""
