"""What every other folder may use: the protocols, checks of arguments, modes and precision, saving."""
