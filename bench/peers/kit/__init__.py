"""What brings peers to a machine without a network: fetched here, packed, built there."""
