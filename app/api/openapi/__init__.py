"""The OpenAPI document: descriptions only, no behaviour."""
