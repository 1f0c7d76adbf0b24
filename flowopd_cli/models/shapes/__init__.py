"""What each family says of itself without being loaded: its transformer's shapes, as rows of ``registry.FAMILIES``."""
