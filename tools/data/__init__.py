"""What launch/data.py does."""
