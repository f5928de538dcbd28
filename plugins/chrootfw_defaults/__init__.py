"""The default behaviour, one module a stage: plugins like any other."""
