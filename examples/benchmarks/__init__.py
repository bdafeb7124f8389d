"""What benchmark.py times."""
