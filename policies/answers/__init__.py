"""What policies that decide around whole answers have in common: asking, comparing, showing."""
