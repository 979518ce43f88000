"""What the router counts, as Prometheus reads it."""
