"""What the metrics say, beside what the ledger has and what clients were told."""
