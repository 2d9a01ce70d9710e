"""Measures the service, the raw pipeline and a plain server under load, in one run."""
