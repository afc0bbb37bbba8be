"""What changes weights: drafts, and later the small heads beside a model."""
