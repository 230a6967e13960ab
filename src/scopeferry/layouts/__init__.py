"""How arrays lie in files: what is needed to read, to check and to write them, and no more."""
