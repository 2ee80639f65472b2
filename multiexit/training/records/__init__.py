"""The records of a run, in its folder: checkpoints, its history, its inputs, its model."""
