"""A checkpoint: where it is found, what it is for, and how its own library opens it."""
