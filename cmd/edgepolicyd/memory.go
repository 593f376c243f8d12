package main

import "runtime/debug"

// Gateways have little memory and much time: the collector runs more often than
// Go's default has it. Measured at 110 pods and 1,000 policies (make bench).
const (
	gcPercentStart = 50 // while all files are decoded
	gcPercent      = 25 // from then on
)

// tightenMemory gives back what the start needed and the rest of the daemon's
// life does not.
func tightenMemory() {
	debug.SetGCPercent(gcPercent)
	debug.FreeOSMemory()
}
