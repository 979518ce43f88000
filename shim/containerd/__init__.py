"""The containerd shim `containerd-shim-podwire-v2`: the stock runc shim, with a network from the router around it."""
