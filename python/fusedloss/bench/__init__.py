"""Time and memory of every loss against torch's eager functions and against torch.compile of them."""
