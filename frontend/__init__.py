"""HTTP and text: takes requests in OpenAI's shapes, turns text into tokens and tokens into text, and talks to the scheduler."""
