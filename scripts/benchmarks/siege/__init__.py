"""Measures a well-behaved client beside hostile ones, and the service's memory under the worst images."""
