"""What another policy would have cost and taken, told from logged decisions of `auto`."""
