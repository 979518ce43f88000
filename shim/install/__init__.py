"""`podwire install`: make the runtimes of a node use the router, and undo it. What is found there serves the doctor too."""
