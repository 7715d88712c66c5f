"""What serves now and how it changes: versions, policies, statistics."""
