"""The command line. Commands import what they need inside their bodies, so that help is instant."""
