"""Faces of a run: progress, the last lines, the receipt. They read events and a result's envelope, nothing else."""
