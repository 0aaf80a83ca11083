"""The command line. Commands import what they need inside their bodies, which keeps `--help` instant."""
