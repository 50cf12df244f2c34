"""``compress serve``: classifiers behind a port, and a page to draw on."""
