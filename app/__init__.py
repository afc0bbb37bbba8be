"""The rooms below HTTP: words, money, models, engines, and the one use case."""
