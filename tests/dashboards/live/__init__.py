"""A real Prometheus scrapes a real gateway under load, and is asked all that is asked of it."""
