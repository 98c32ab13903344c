"""Adapters for what published clients expect; nothing of them leaks into the core types."""
