"""Where the subnet table comes from: one module a source."""
