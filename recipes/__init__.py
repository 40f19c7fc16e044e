"""Whole experiments as YAML files; data only, found by name through `importlib.resources.files("dla_recipes")`."""
