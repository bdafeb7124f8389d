"""Data sets, readers and writers of video, and what a training leaves behind."""
