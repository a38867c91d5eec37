"""A server that speaks OpenAI's protocol: run.py serve, by itself, and Ray Serve on several machines."""
