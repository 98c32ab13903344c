"""The policy network, shared by the rollout engine and the trainer so that both compute the same."""
