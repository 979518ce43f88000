"""The gRPC edge: where it listens, how it checks and translates, what it serves. Nothing else knows gRPC."""
