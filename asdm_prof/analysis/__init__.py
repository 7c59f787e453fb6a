"""What a profile says: rank, differences between two, transfer to other settings, structure."""
