"""Tests of app/training/confidence."""
