"""The command line: its arguments, how its errors are told, and its largest command, `minids train`."""
