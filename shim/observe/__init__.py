"""Questions about packets, from the command line: trace, why, capture, flows, top."""
