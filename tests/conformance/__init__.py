"""What runtimes run, and real runtimes, from Debian's packages, on a network of the router's: `make conformance`."""
