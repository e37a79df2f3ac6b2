"""What users would pick instead: each peer in its own virtual environment, under one and the same load."""
