"""What a run keeps in its folder: checkpoints, its history, what it was made from, its model."""
