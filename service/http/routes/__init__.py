"""One file per group of endpoints. A route reads the request, calls the runtime and writes the answer."""
