"""The hooks: what plugins can answer, which plugins there are, and how they are called."""
