"""Thousands of nodes on one machine: their sources, tables and snapshots are real, and so is the etcd; data paths are left out.

python -m benchmarks.simulation --nodes 1000

scenario    starts etcd and crowds in a namespace of its own, plays storms, joins, restarts, deaths and partitions
crowd       a process with many nodes in one event loop; told what to do line by line, reports when what was seen
node        one node: its own watch, lease, table and snapshot, as a router has them
report      figures as a table, JSON and plots
"""
