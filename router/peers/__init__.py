"""The other nodes' routers: whether they answer, how fast, and how much their path carries."""
