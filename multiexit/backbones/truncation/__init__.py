"""Networks that end at an exit."""
