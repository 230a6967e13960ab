"""Plan, do, remember, tell: tasks, the journal, the runner, events, digests, and the calls that differ by system."""
