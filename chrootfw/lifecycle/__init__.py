"""The verbs that change an instance, and the stages of which they consist."""
