"""What we measure of ourselves, one file per thing measured."""
