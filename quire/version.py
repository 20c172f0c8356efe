"""The version, in one place: the build, the CLI and the server all read it from here."""

__version__ = "0.1.0"
