"""What one runner process costs with a thousand episodes at once, without browser and model."""
