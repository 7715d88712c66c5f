"""Active models, their tables and policies, and how they change."""
