"""The service under load, beside the raw pipeline and a plain server, in one run."""
