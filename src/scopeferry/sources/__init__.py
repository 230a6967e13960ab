"""Where things come from: what is ready to be read, and whether it stayed what it was while it was read."""
