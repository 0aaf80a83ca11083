"""What a long-context model can do, measured; import the module of the measurement you want."""
