"""The commands, a module a group; cli.py imports one when it is asked for."""
