"""The built-in drivers, one folder for each family of devices."""
