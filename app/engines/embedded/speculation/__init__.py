"""Guessing tokens ahead in the embedded engine, and verifying the guesses in one pass."""
