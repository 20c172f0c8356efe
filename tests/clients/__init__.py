"""Real client libraries against a real server: one assertion of substance for each thing that each of them can do."""
