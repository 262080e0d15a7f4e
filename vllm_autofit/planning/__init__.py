"""Request, devices and lessons in, one ``Plan`` out. Pure."""
