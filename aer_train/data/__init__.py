"""From datasets to prompts."""
