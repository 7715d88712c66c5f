"""Active models and policies, and how they change."""
