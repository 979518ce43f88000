"""The CNI plugin `podwire-cni` (CNI specification 0.3.1 to 1.1.0): a thin client of the node's router, a process a verb."""
