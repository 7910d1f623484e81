"""What launch/imagine.py does."""
