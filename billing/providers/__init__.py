"""Payment providers by name. Only this package speaks HTTP to the outside on behalf of billing."""
