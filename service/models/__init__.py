"""The models that are served, and the model store that they come from."""
