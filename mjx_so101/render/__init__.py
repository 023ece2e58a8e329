"""Pictures of the scene."""
