"""The OpenAPI document: everything that only describes."""
