"""The OpenAPI document, and the schemas of requests and responses."""
