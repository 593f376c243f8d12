package lab

import (
	_ "github.com/containernetworking/cni/libcni"
)
