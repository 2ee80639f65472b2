"""Networks of timm and torchvision, and CIFAR's ResNets."""
