"""Everything that makes an image faster on this machine: each lever's factor, and all together on whole images."""
