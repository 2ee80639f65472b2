"""Files: what a user names is read with care, and what is written is whole or not there."""
