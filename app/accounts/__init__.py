"""Whose money it is: API keys, what they may spend, and what they have spent."""
