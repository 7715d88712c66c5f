"""Tests of item and user tables."""
