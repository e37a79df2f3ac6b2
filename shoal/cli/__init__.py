"""The command `shoal`: what a user types, and what is printed. Each module holds some of the commands.

Commands import the other rooms (`export`, `serving`, `clients`, `loadtest`) in their bodies, so that `shoal
--help` needs none of them, and a command needs only what it uses.
"""
