"""Runtime front-ends of the router: each a thin gRPC client."""
