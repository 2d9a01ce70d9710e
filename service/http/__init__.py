"""The HTTP edge: connections, request bodies, routes, answers and errors."""
