"""What channel removal decides before it trains."""
