"""The command line: argument parsing and printing only, one file a command.

A command is a function with typer annotations; it imports what is heavy inside itself, raises `UserError`
for the user's mistakes and returns its exit code (None is 0).
"""
