"""A cluster of bare network namespaces on one machine."""
