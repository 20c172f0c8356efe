"""Tests of frontend/, in one process."""
