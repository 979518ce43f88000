"""The engines that carry packets, behind one contract (`interface`), and the chooser (`choose`)."""
