"""Where things are put: each store publishes whole and proved, or not at all."""
