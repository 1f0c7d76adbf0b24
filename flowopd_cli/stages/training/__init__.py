"""What the three training stages share."""
