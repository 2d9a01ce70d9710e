"""The served models, and the model store from which they are loaded."""
