"""What makes tokens: the embedded torch engine, and a scripted one."""
