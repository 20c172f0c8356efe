"""Tests of frontend.output_split and the formats it reads."""
