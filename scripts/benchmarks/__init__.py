"""`faster-rcnn benchmark`.

Only the modules for torchvision models import torch, so that a serving installation can run the others.
"""
