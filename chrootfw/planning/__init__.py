"""Pure rules about names, paths, orders, escalations and states.

Nothing in this package can touch the system.
"""
