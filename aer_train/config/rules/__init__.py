"""What the options of a configuration must be, by what they are for."""
