"""What desktops cost, by provider."""
