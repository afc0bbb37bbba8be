"""How many requests of a replayed trace are answered in time and within budget, by way."""
