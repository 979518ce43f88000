"""What becomes of packets, one by one: names for both ends, drops, taps and captures, flows, traces."""
