"""The described behaviour, one short module a stage; every one of them a plugin like any other."""
