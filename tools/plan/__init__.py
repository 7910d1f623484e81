"""What launch/plan.py does."""
