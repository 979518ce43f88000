"""A page for people and metrics for Prometheus, over HTTP: for reading only, off unless a setting asks for it."""
