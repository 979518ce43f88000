"""What the router asks of the kernel: namespaces, TUN devices, the underlay socket, masquerading, its own rights."""
