"""The page to draw on: of the service, which it asks, and as a folder that needs none, where the browser itself computes."""
