"""A user's own data: tables and images, in files or in memory, as a task to train on."""
