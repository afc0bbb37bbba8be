"""The ledger's tables, their migrations, and every SQL statement we have."""
