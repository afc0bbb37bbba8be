"""Dashboards, rules and alerts: that they ask for what there is."""
