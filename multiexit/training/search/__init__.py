"""The search for settings: a space, a queue of trials, and cross-validation to judge them."""
