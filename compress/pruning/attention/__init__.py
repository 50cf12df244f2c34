"""Attention whose heads go one by one: what computes it (`attend`, `windows`), and what of a network is put in that form (`heads`)."""
