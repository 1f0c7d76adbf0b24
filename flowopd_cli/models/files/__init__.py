"""The configurations and headers of bases and adapters, read without torch."""
