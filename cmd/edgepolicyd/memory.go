package main

import (
	"math"
	"runtime/debug"
)

// Gateways have little memory and much time. While the daemon starts, the
// collector waits until there is this much garbage; from then on it runs more
// often than Go's default has it. Measured by `make bench`.
const (
	startLimit = 20 << 20 // bytes that the runtime has from the kernel
	gcPercent  = 25
)

// loosenMemory lets the start be quick.
func loosenMemory() {
	debug.SetGCPercent(400)
	debug.SetMemoryLimit(startLimit)
}

// tightenMemory gives back what the start needed and the rest of the daemon's
// life does not.
func tightenMemory() {
	debug.SetMemoryLimit(math.MaxInt64)
	debug.SetGCPercent(gcPercent)
	debug.FreeOSMemory()
}
