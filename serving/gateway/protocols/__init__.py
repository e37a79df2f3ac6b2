"""What clients speak, a file for each protocol: requests to ours, and answers back."""
