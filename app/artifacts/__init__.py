"""Artifacts on disk: manifest, program, golden examples, vocabularies, store."""
