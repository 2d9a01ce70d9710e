"""One file per group of endpoints. Each route reads the request, calls the runtime and writes the answer."""
