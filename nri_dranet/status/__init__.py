"""The one writer of ResourceClaim.status.devices."""
