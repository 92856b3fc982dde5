"""Reinforcement learning, a piece a file: rollouts, rewards, advantages, the surrogate loss."""
