"""Which nodes of a network to compute in int8, and how: the search, what it foretells, and the groups that it takes."""
