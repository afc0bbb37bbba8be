"""What every way to answer is worth, costs and takes: measured, and written as a profile."""
