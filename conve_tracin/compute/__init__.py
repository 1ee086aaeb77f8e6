"""Where and how things are computed: devices, processes, threads."""
