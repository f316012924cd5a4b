"""What every package may use: errors, files, progress, ranks, devices. Imports the standard library only."""
