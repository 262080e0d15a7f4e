"""Reads the world, decides nothing: what was asked for, the model on disk, the memory of the devices."""
