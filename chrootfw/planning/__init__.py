"""Pure rules: names and paths, orders, escalation, states. Imports nothing that can touch the system."""
