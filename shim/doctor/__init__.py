"""`podwire doctor`: look at a node from all sides, and say how to mend what is found."""
