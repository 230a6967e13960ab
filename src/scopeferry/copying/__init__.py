"""Carrying bytes: the plan, the copy, the record of it, and what is done with a record later: verify, repair, clean."""
