"""Traces: what each router on the way would do with a packet, what a real one meets, and what that means."""
