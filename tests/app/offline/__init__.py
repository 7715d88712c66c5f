"""Tests of `app.offline`."""
