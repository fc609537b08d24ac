"""Further ways to learn, one file each: what is new, the loop, and the command."""
