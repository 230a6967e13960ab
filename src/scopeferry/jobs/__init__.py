"""The jobs: each composes a source, a store, a journal and a record, and says what became of it."""
