"""Recipes: turns YAML and `key=value` into frozen dataclasses; errors name key, file and line."""
