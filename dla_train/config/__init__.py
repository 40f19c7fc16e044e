"""Recipes: YAML and `key=value` become frozen dataclasses, and errors name key, file and line."""
