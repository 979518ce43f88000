"""The router daemon: one a node, carries Pod packets between TUN devices and UDP tunnels."""
