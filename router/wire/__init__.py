"""Packets and what carries them, as bytes: headers, Geneve, super-packets and trains, ICMP errors, fragments. Pure."""
