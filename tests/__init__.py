"""Tests mirror the modules; shared parts stand beside them."""
