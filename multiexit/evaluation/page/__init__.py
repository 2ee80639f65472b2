"""One HTML page about runs, whole in itself: no network, no other file."""
