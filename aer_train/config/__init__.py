"""The configuration: what there is to set, how it is read, which rules hold, which settings to start from."""
