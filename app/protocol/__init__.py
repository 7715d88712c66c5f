"""Bytes to features, scores to bytes: the native JSON API and the Open Inference Protocol."""
