"""One file a group of endpoints: each takes the request apart, asks the runtime, and writes the answer."""
