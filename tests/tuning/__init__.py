"""Tests of `app.tuning`."""
