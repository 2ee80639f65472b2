"""Networks cut where a single tensor of their graph is alive."""
