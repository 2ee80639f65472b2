"""Networks taken apart by the calls of their layers."""
