"""What ``flowopd doctor`` looks at on this machine."""
