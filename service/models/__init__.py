"""The models that are served, and the store that they come from."""
