"""What the router's stickiness and the history rule are worth to vLLM's prefix cache."""
