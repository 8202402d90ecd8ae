"""Great Expectations over the tables that stages write."""
