"""Grafana dashboards of the gateway, generated: `make dashboards` writes `dashboards/*.json`."""
