"""The native engine: compiled threads (src/, in Rust), and what speaks the engine contract over them (engine.py)."""
