"""A long training run on desktops, watched for what it leaks."""
